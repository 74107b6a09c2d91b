"""The JSON API: /api/..., described by /api/openapi.json."""

from typing import Annotated, Any, Literal

from fastapi import APIRouter, FastAPI, File, Form, Header, HTTPException, Path, Query, UploadFile
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, Field

from dml.data.decode import UnreadableImage
from dml.index.hits import Hit
from dml.serve.batching import Closed
from dml.serve.options import MOST_RESULTS
from dml.serve.service import LAST_ROW, NotFound, Service, UnknownLabel, readable

K = 12


class Error(BaseModel):
    """What was wrong."""

    error: str


class Result(BaseModel):
    """One image that was found."""

    rank: int = Field(description="from 1, the nearest")
    score: float = Field(description="larger is nearer; see `similarity`")
    row: int = Field(description="number of the image in the index")
    path: str = Field(description="relative to the indexed folder")
    label: str | None = Field(description="class, or null")
    same: bool | None = Field(description="whether score >= threshold; null: not calibrated")
    image: str | None = Field(description="address of the image; null: its file is gone")
    thumbnail: str | None


class Results(BaseModel):
    """Images in the order of their scores."""

    similarity: Literal["cosine", "dot", "euclidean"] = Field(
        description="what scores are: cosines, inner products, or minus Euclidean distances"
    )
    threshold: float | None = Field(description="from which score on two images show the same")
    results: list[Result]


class Health(BaseModel):
    """What is served, and how much it has done."""

    status: Literal["ok"]
    images: int = Field(description="searchable images")
    dim: int
    kind: str = Field(description="of the index: flat, hnsw, ...")
    encoder: str = Field(description="fingerprint")
    embedded: int = Field(description="images embedded since the start")
    batches: int = Field(description="in how many batches")


class Labels(BaseModel):
    """The classes that `label` may name."""

    labels: list[str]


Count = Annotated[int, Field(ge=1, le=MOST_RESULTS, description="how many results")]
Row = Annotated[int, Path(ge=0, le=LAST_ROW, description="number of an image in the index")]
LABEL = "only images of this class; empty: of all"

TEXTS = {
    400: "The request is no HTTP that this server takes",
    404: "No such image",
    408: "The upload took too long",
    413: "The request is too large",
    422: "A value that cannot be, an unknown class, or a file that is no image",
    503: "Too many requests, or the server is stopping",
    504: "No answer in time",
}


def errors(*codes: int) -> dict[int | str, dict[str, Any]]:
    """Error responses for the description."""
    return {code: {"model": Error, "description": TEXTS[code]} for code in (*codes, 400, 503, 504)}


def router(service: Service) -> APIRouter:
    """The routes of the API."""
    api = APIRouter(prefix="/api")

    @api.post("/search", responses=errors(408, 413, 422))
    async def search(
        image: Annotated[UploadFile, File(description="JPEG, PNG, WebP, GIF, BMP, TIFF or AVIF")],
        k: Annotated[Count, Form()] = K,
        label: Annotated[str | None, Form(description=LABEL)] = None,
    ) -> Results:
        """The images nearest to an uploaded one.  Of an animation the first frame counts."""
        return results(service, await service.by_upload(await image.read(), k, label))

    @api.get("/items/{row}/similar", responses=errors(404, 422))
    async def similar(
        row: Row,
        k: Annotated[Count, Query()] = K,
        label: Annotated[str | None, Query(description=LABEL)] = None,
    ) -> Results:
        """The images nearest to an indexed one, which is left out."""
        return results(service, await service.by_row(row, k, label))

    @api.get(
        "/images/{row}",
        response_class=Response,
        responses={
            200: {
                "content": {"image/*": {"schema": {"type": "string", "format": "binary"}}},
                "description": "The image: a JPEG thumbnail, or the file as it is",
            },
            304: {"description": "As the client knows it"},
            **errors(404, 422),
        },
    )
    async def image(
        row: Row,
        size: Annotated[Literal["thumbnail", "full"], Query()] = "full",
        if_none_match: Annotated[str | None, Header()] = None,
    ) -> Response:
        """An indexed image."""
        picture = await service.picture(row, size == "full")
        headers = {"ETag": picture.etag, "Cache-Control": "private, no-cache"}
        if if_none_match is not None and picture.etag in if_none_match:
            return Response(status_code=304, headers=headers)
        return Response(picture.data, media_type=picture.media_type, headers=headers)

    @api.get("/labels", responses=errors())
    async def labels() -> Labels:
        """The classes of the index, in alphabetical order."""
        return Labels(labels=sorted(service.labels))

    @api.get("/health", responses=errors())
    async def health() -> Health:
        """That the server answers, and what it serves."""
        return Health(
            status="ok",
            images=len(service.index),
            dim=service.index.dim,
            kind=service.index.kind,
            encoder=service.encoder.fingerprint,
            embedded=service.batcher.images,
            batches=service.batcher.batches,
        )

    return api


def results(service: Service, hits: list[Hit]) -> Results:
    """Hits as the API writes them."""
    calibration = service.index.calibration
    return Results(
        similarity=service.index.similarity,  # type: ignore[arg-type]
        threshold=None if calibration is None else calibration.threshold,
        results=[
            Result(
                rank=hit.rank,
                score=hit.score,
                row=hit.row,
                path=readable(hit.path),
                label=None if hit.label is None else readable(hit.label),
                same=hit.same,
                image=None if hit.file is None else f"/api/images/{hit.row}",
                thumbnail=None if hit.file is None else f"/api/images/{hit.row}?size=thumbnail",
            )
            for hit in hits
        ],
    )


def told(error: Exception) -> tuple[int, str] | None:
    """Status and message of an error that a request can meet; None for all others."""
    match error:
        case HTTPException():
            return error.status_code, str(error.detail)
        case NotFound():
            return 404, str(error)
        case UnknownLabel():
            return 422, str(error)
        case UnreadableImage():
            return 422, f"This cannot be read as an image ({error})."
        case Closed():
            return 503, "The server is stopping."
    return None


def answer_errors(app: FastAPI) -> None:
    """Make every error of a request JSON: {"error": what was wrong}."""
    from starlette.exceptions import HTTPException as AnyHTTPException

    async def known(_: Any, error: Exception) -> JSONResponse:
        found = told(error)
        assert found is not None
        return JSONResponse({"error": found[1]}, found[0])

    async def http(_: Any, error: Any) -> JSONResponse:
        return JSONResponse({"error": str(error.detail)}, error.status_code, error.headers)

    async def invalid(_: Any, error: Any) -> JSONResponse:
        return JSONResponse({"error": wrong_values(error)}, 422)

    for kind in (NotFound, UnknownLabel, UnreadableImage, Closed):
        app.add_exception_handler(kind, known)
    app.add_exception_handler(AnyHTTPException, http)
    app.add_exception_handler(RequestValidationError, invalid)


def wrong_values(error: RequestValidationError) -> str:
    """All values that cannot be, each with its name."""
    lines = []
    for problem in error.errors():
        name = ".".join(str(part) for part in problem["loc"][1:]) or str(problem["loc"][0])
        lines.append(readable(f"{name}: {problem['msg']}"))
    return "; ".join(lines) + "."
