"""Preparing data sets: images from folders, tables and archives to TFDS data sets stored as ArrayRecord.

catalogue.py says which images there are, read by folders.py, tables.py and archives.py; images.py and
tfrecords.py turn a catalogue, or a TFRecord data set, into shards to be written; engine.py writes them
in processes, resumably; metadata.py describes the result as TFDS does.
"""
