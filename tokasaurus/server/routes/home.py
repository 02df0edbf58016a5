"""GET /: a page for people, which says what is served here and how to try it."""

import html
import json

from fastapi import APIRouter, Request, Response

from tokasaurus import __version__
from tokasaurus.server.state import ServerState, state_of

router = APIRouter(tags=["home"])

_LINKS = (
    ("/docs", "Every endpoint, to read and to try"),
    ("/openapi.json", "The same for machines"),
    ("/v1/models", "The served model"),
    ("/health", "Is the server alive?"),
    ("/ready", "Does it take requests?"),
)
_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Tokasaurus: {model}</title>
<link rel="icon" href="data:,">
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 44rem; margin: 3rem auto; padding: 0 1rem;
  color: #1c2430; background: #fff; }}
dl {{ display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1.5rem; }}
dt {{ color: #5a6675; }} dd {{ margin: 0; }}
pre {{ background: #f2f4f7; padding: 1rem; border-radius: .4rem; overflow-x: auto; }}
@media (prefers-color-scheme: dark) {{
  body {{ color: #dde3ea; background: #14181d; }} dt {{ color: #98a4b3; }} a {{ color: #8ab4f8; }}
  pre {{ background: #1f252d; }}
}}
</style>
</head>
<body>
<h1>Tokasaurus</h1>
<dl>
{facts}
</dl>
<h2>Try it</h2>
<pre><code>{command}</code></pre>
<h2>More</h2>
<ul>
{links}
</ul>
</body>
</html>
"""


@router.get("/", summary="A page for people", include_in_schema=False)
async def show_home(request: Request) -> Response:
    state = state_of(request)
    facts = {
        "Model": state.model_name,
        "State": _state_in_words(state),
        "Context": _context_in_words(state),
        "Version": __version__,
    }
    page = _PAGE.format(
        model=html.escape(state.model_name),
        facts="\n".join(
            f"<dt>{name}</dt><dd>{html.escape(text)}</dd>" for name, text in facts.items()
        ),
        command=html.escape(_curl(state, str(request.base_url).rstrip("/"))),
        links="\n".join(
            f'<li><a href="{path.removeprefix("/")}">{path}</a>: {html.escape(text)}</li>'
            for path, text in _LINKS
        ),
    )
    return Response(page, media_type="text/html; charset=utf-8")


def _state_in_words(state: ServerState) -> str:
    engine = state.engine
    if engine.failure is not None:
        return f"down: {engine.failure}"
    if not engine.is_ready:
        return "starting"
    return f"ready; {engine.num_in_flight} samples in flight"


def _context_in_words(state: ServerState) -> str:
    if not state.engine.is_ready:
        return "known once it is ready"
    return f"{state.engine.limits.max_model_len} tokens of prompt and output together"


def _curl(state: ServerState, base_url: str) -> str:
    if state.chat_template is None:
        path, body = "completions", {"prompt": "Hello", "max_tokens": 50}
    else:
        path = "chat/completions"
        body = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 50}
    data = json.dumps({"model": state.model_name, **body}, ensure_ascii=False)
    quoted = data.replace("'", "'\\''")
    return (
        f"curl {base_url}/v1/{path} \\\n  -H 'Content-Type: application/json' \\\n  -d '{quoted}'"
    )
