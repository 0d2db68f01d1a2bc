"""Card templates (jinja2) and their partials, installed as ``atomhub.cards``; rendered by ``atomhub.storage.cards``."""
