"""Templates over contexts, strictly: a variable that a context lacks is an error, not a blank."""

from __future__ import annotations

import functools

import jinja2

from web import assets, words
from web.contexts import Context


def environment() -> jinja2.Environment:
    """A new one; for whoever wants to read the templates."""
    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader(assets.directory("templates")),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )
    made.filters["unbroken"] = words.unbroken
    return made


_environment = functools.cache(environment)


@functools.cache
def _template(name: str) -> jinja2.Template:
    return _environment().get_template(f"{name}.html")


def render(name: str, context: Context) -> str:
    """A template over a context's fields."""
    return _template(name).render({field: getattr(context, field) for field in context.__struct_fields__})


def compact(name: str, context: Context) -> str:
    """The same without blank lines and indentation: what is sent again and again."""
    return "\n".join(line for line in map(str.strip, render(name, context).splitlines()) if line)
