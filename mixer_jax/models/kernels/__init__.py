"""Forms of layers that suit a platform, behind the layers' calls: no model mentions a platform."""
