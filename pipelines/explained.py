"""What went wrong, in one line a user can act on."""

from recsys.errors import RecsysError

EXTRAS = {
    "train": ("torch", "jaxtyping", "accelerate", "scipy", "onnx", "onnxscript"),
    "serve": ("fastapi", "starlette", "uvicorn", "onnxruntime", "prometheus_client", "jinja2", "redis", "limits"),
    "text": ("transformers", "tokenizers"),
    "llm": ("httpx", "jsonschema", "referencing", "peft"),
    "hpo": ("optuna",),
    "report": ("matplotlib",),
    "spark": ("pyspark", "pyarrow"),
}


def explained(error: Exception) -> str:
    """What was wrong in one line, and what to do; an error that the user did not cause is called a bug."""
    if isinstance(error, RecsysError):
        return str(error)
    if isinstance(error, OSError):
        return explained_os_error(error)
    if isinstance(error, ModuleNotFoundError):
        package = (error.name or "").partition(".")[0]
        if extra := extra_with(package):
            return f"this command needs {package}; install it with pip install 'recsys[{extra}]'."
    return f"unexpected {type(error).__name__}: {error}. This is a bug; --debug shows where it arose."


def explained_os_error(error: OSError) -> str:
    """The file and the reason; what exists already where a folder is to be made is a file."""
    reason = "not a directory" if isinstance(error, FileExistsError) else (error.strerror or str(error)).lower()
    return f"cannot read or write {error.filename}: {reason}." if error.filename else f"{reason}."


def extra_with(package: str) -> str | None:
    """The optional part of this package that brings another one."""
    return next((extra for extra, packages in EXTRAS.items() if package in packages), None)
