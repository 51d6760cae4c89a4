"""Errors as a client gets them; PROTOCOL.md section 6."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from stm_plugin.errors import (
    ColourError,
    DeviceError,
    DiskFullError,
    KeyframeError,
    MaskError,
    MatteError,
    PlateError,
    PropagationCancelled,
    ProtocolError,
    SettingsError,
    StmError,
    StoreBusyError,
    StoreError,
    WeightsError,
)
from stm_plugin.protocol.framing import FramingError


class RequestError(StmError):
    """A request that cannot be carried out, with the protocol's code of the reason."""

    def __init__(
        self,
        code: str,
        what: str,
        *,
        frame: int | None = None,
        path: str | None = None,
        hint: str | None = None,
        details: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(what, frame=frame, path=path, hint=hint)
        self.code = code
        self.details = dict(details or {})


_CODES: Final[tuple[tuple[type[StmError], str], ...]] = (
    (StoreBusyError, "store_busy"),
    (StoreError, "store"),
    (PlateError, "plate"),
    (MaskError, "mask"),
    (KeyframeError, "key"),
    (ColourError, "colour"),
    (MatteError, "matte"),
    (SettingsError, "settings"),
    (WeightsError, "weights"),
    (DeviceError, "device"),
    (PropagationCancelled, "cancelled"),
    (FramingError, "framing"),
    (DiskFullError, "store"),
    (ProtocolError, "bad_request"),
)


def error_code(error: StmError) -> str:
    """The protocol's code for an error."""
    if isinstance(error, RequestError):
        return error.code
    return next((code for kind, code in _CODES if isinstance(error, kind)), "internal")


def error_header(error: StmError) -> dict[str, Any]:
    """The header of the message for `error`."""
    return {
        "code": error_code(error),
        "what": error.what,
        "frame": error.frame,
        "path": error.path,
        "hint": error.hint,
        "text": str(error),
        "details": error.details if isinstance(error, RequestError) else {},
    }
