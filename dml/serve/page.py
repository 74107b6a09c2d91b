"""The web page: made on the server, whole without script, which adds dropping and pasting."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlencode

from fastapi import APIRouter, Form, Query, UploadFile
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from dml.index.page import one_line
from dml.serve.api import Count, K, told
from dml.serve.service import LAST_ROW, Service, readable

EXAMPLES = 12
COUNTS = (12, 24, 48, 96)
STATIC = Path(__file__).parent / "static"
SCALES = {
    "cosine": "cosine",
    "dot": "inner product",
    "euclidean": "minus the Euclidean distance",
}


def router(service: Service) -> APIRouter:
    """The page at /, by a link (`?row=`) or by its form (POST)."""
    pages = APIRouter(include_in_schema=False)
    template = environment().get_template("search.html.j2")

    async def page(
        status: int, k: int, label: str | None, query: Mapping[str, Any] | None = None, **more: Any
    ) -> Response:
        context = {"hits": None, "problem": None, "examples": [], **more}
        if context["hits"] is None:
            context["examples"] = await service.in_thread(service.some, EXAMPLES)
        text = template.render(
            name=service.index.path.name,
            images=len(service.index),
            labels=sorted(service.labels),
            scale=SCALES[service.index.similarity],
            calibration=service.index.calibration,
            counts=sorted({*COUNTS, k}),
            k=k,
            label=label or "",
            query=query,
            link=lambda row: link(row, k, label),
            **context,
        )
        headers = {"Cache-Control": "no-store"}
        return HTMLResponse(text.encode("utf-8", "replace"), status, headers)

    async def failed(error: Exception, k: int, label: str | None) -> Response:
        """The page with what was wrong; errors that nobody foresaw go on."""
        found = told(error)
        if found is None:
            raise error
        return await page(found[0], k, label if label in service.labels else None, problem=found[1])

    @pages.get("/")
    async def by_link(
        row: Annotated[int | None, Query(ge=0, le=LAST_ROW)] = None,
        k: Annotated[Count, Query()] = K,
        label: Annotated[str | None, Query()] = None,
    ) -> Response:
        try:
            service.label(label)
            if row is None:
                return await page(200, k, label)
            hits = await service.by_row(row, k, label)
            item = await service.in_thread(service.item, row)
        except Exception as error:
            return await failed(error, k, label)
        picture = None if item.file is None else f"/api/images/{row}?size=thumbnail"
        about = {"row": row, "name": item.path, "label": item.label, "picture": picture}
        return await page(200, k, label, about, hits=hits)

    @pages.post("/")
    async def by_form(
        image: UploadFile | None = None,
        row: Annotated[int | None, Form(ge=0, le=LAST_ROW)] = None,
        k: Annotated[Count, Form()] = K,
        label: Annotated[str | None, Form()] = None,
    ) -> Response:
        # A form without a chosen file sends one without a name and without content.
        data = b"" if image is None else await image.read()
        if image is None or not (data or image.filename):
            return RedirectResponse(link(row, k, label), 303)
        try:
            hits = await service.by_upload(data, k, label)
            picture = await service.upload_as_data_url(data)
        except Exception as error:
            return await failed(error, k, label)
        about = {
            "row": None,
            "name": image.filename or "your image",
            "label": None,
            "picture": picture,
        }
        return await page(200, k, label, about, hits=hits)

    return pages


def link(row: int | None, k: int, label: str | None) -> str:
    """The page that searches by an indexed image."""
    given = {"row": row, "k": None if k == K else k, "label": readable(label) if label else None}
    words = urlencode({name: value for name, value in given.items() if value is not None})
    return f"/?{words}" if words else "/"


def environment() -> Environment:
    """Templates, everything escaped."""
    made = Environment(
        loader=PackageLoader("dml.serve", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {"one_line": one_line, "thousands": "{:,}".format, "breakable": breakable}
    return made


def breakable(text: str) -> Markup:
    """A long name that a narrow column may break after its underscores and slashes."""
    return Markup(re.sub("([_/])", r"\1<wbr>", str(escape(one_line(text)))))
