"""Lists the configurations that come with the project, with what each is and an example of its argument.

python -m mixer_jax.tools.configs          # all of them
python -m mixer_jax.tools.configs imagenet # the whole description of one: its arguments, what it needs
"""

import ast
import re

from mixer_jax.tools import command, command_help, config_files


def main(argv: list[str]) -> None:
  command.end_with_reader()
  for name in argv[1:]:
    print(description(name))
  if argv[1:]:
    return
  for name in config_files.names():
    text = description(name)
    examples = re.findall(rf"--config=configs/{name}\.py(\S*)", text)
    print(f"{name}\n  {text.splitlines()[0]}\n  --config={name}{examples[0] if examples else ''}")
  print(
    f"\n{command_help.as_called('python -m mixer_jax.tools.configs')} NAME describes one; "
    "--config=NAME --help lists its keys."
  )


def description(name: str) -> str:
  """Returns the docstring of a configuration file."""
  text = ast.get_docstring(ast.parse(config_files.path_of(name).read_text())) or ""
  return command_help.as_called(text)


if __name__ == "__main__":
  command.run(main)
