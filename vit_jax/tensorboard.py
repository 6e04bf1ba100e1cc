"""TensorBoard's event files, written without TensorFlow, whose import takes seconds.

Records and protocol buffers are those of the package `tensorboard` itself:
https://github.com/tensorflow/tensorboard/tree/master/tensorboard/compat/proto.
"""

import importlib
import os
import re
import socket
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import cv2
import numpy as np
from etils import epath

# What metrics.jsonl has and nobody wants to see as a curve.
_NO_CURVE = re.compile(r"timing/(elapsed|eta)_s|.*/examples|.*/examples_seen")


class EventWriter:
    """Writes one event file, in a thread of its own.

    What goes wrong there (`OSError` of a full disk) is raised by the next call, and by
    every call after it; nothing more is written then.
    """

    def __init__(self, directory: epath.PathLike):
        """Starts a new file.

        Args:
          directory: local or in an object store; made if missing.
        """
        directory = epath.Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        # TensorBoard reads the files of a run in the order of their names.
        now, host = int(time.time()), socket.gethostname()
        name = f"events.out.tfevents.{now:010d}.{host}.{os.getpid()}.{id(self)}.v2"
        # Here, not above: most commands write no events.
        from tensorboard.summary.writer import record_writer

        self._file = record_writer.RecordWriter((directory / name).open("wb"))
        self._thread = ThreadPoolExecutor(1, "tensorboard")
        first = _event(file_version="brain.Event:2")
        self._last = self._thread.submit(self._file.write, first)

    def scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        """A point of a curve for each."""
        values = [
            {"tag": name, "simple_value": value}
            for name, value in scalars.items()
            if not _NO_CURVE.fullmatch(name)
        ]
        self._summary(step, values)

    def images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        """Pictures: uint8 [h, w, 3], RGB."""
        values = []
        for name, image in images.items():
            _, png = cv2.imencode(".png", image[..., ::-1])
            height, width, channels = image.shape
            about = {"height": height, "width": width, "colorspace": channels}
            picture = about | {"encoded_image_string": png.tobytes()}
            values.append({"tag": name, "image": picture})
        self._summary(step, values)

    def texts(self, step: int, texts: Mapping[str, str]) -> None:
        """Markdown for the TEXT tab."""
        values = [
            {
                "tag": name,
                "metadata": {"plugin_data": {"plugin_name": "text"}},
                "tensor": {
                    "dtype": "DT_STRING",
                    "tensor_shape": {},
                    "string_val": [text.encode()],
                },
            }
            for name, text in texts.items()
        ]
        self._summary(step, values)

    def hparams(self, hparams: Mapping[str, bool | int | float | str]) -> None:
        """Hyperparameters by name, for the HPARAMS tab."""
        plugin: Any = importlib.import_module(
            "tensorboard.plugins.hparams.plugin_data_pb2"
        )
        data = plugin.HParamsPluginData()
        data.session_start_info.start_time_secs = time.time()
        for name, value in hparams.items():
            place = data.session_start_info.hparams[name]
            if isinstance(value, bool):
                place.bool_value = value
            elif isinstance(value, str):
                place.string_value = value
            else:
                place.number_value = value
        content = {"plugin_name": "hparams", "content": data.SerializeToString()}
        value = {
            "tag": "_hparams_/session_start_info",
            "metadata": {"plugin_data": content},
            "tensor": {"dtype": "DT_FLOAT", "tensor_shape": {"dim": [{"size": 0}]}},
        }
        self._summary(0, [value])

    def flush(self) -> None:
        """Returns when all that was written is in the file."""
        self._do(self._file.flush)
        self._last.result()

    def close(self) -> None:
        """Flushes and closes; a second call does nothing but raise the error again."""
        self._thread.shutdown()
        self._file.close()
        self._last.result()

    def _summary(self, step: int, values: list[dict[str, Any]]) -> None:
        if values:
            event = _event(step=step, summary={"value": values})
            self._do(self._file.write, event)

    def _do(self, write: Callable[..., None], *args: Any) -> None:
        """Puts it into the thread. An error is that of all that comes after it."""
        if self._last.done():
            self._last.result()
        self._last = self._thread.submit(_after, self._last, write, *args)


def _after(before: Future[None], write: Callable[..., None], *args: Any) -> None:
    before.result()
    write(*args)


def _event(**fields: Any) -> bytes:
    proto: Any = importlib.import_module("tensorboard.compat.proto.event_pb2")
    return proto.Event(wall_time=time.time(), **fields).SerializeToString()
