"""Times of a log, in whatever form they were written, as microseconds since 1970 UTC."""

import logging
from typing import Literal

import polars as pl

from recsys.errors import DataError

TimeUnit = Literal["auto", "s", "ms", "us", "ns", "min", "iso", "yyyymmdd", "mmdd"]

MICROSECONDS = {"min": 60_000_000, "s": 1_000_000, "ms": 1_000, "us": 1}
# Medians below these are taken for the unit: the year 5138 in seconds, milliseconds and microseconds.
MAGNITUDES: tuple[tuple[float, TimeUnit], ...] = ((1e11, "s"), (1e14, "ms"), (1e17, "us"), (float("inf"), "ns"))
EARLIEST_USUAL_SECONDS = 1e8
INT64_MAX = 2**63 - 1
# Years 1900 to 2261, in microseconds: outside them a number was most likely read in the wrong unit.
EARLIEST_PLAUSIBLE, LATEST_PLAUSIBLE = -2_208_988_800_000_000, 9_214_646_400_000_000 - 1
MMDD_YEAR = "2000"  # a leap year, so that every day of a log without years can be written
ISO_8601 = r"^(\d{4}-\d{2}-\d{2})(?:[Tt ](\d{2}:\d{2})(:\d{2}(?:\.\d{1,9})?)? ?(?:[Zz]|([+-]\d{2}):?(\d{2})?)?)?$"

logger = logging.getLogger(__name__)


def to_microseconds(times: pl.Series, unit: TimeUnit) -> pl.Series:
    """Microseconds since 1970 UTC (i64), null where unreadable.

    `unit` holds for numbers; texts that are not numbers are read as ISO 8601, as UTC where they name no offset.
    """
    if times.dtype.is_temporal():
        return _from_dates(times)
    if times.dtype != pl.String and not times.dtype.is_numeric():
        raise DataError(f"column {times.name!r} holds {times.dtype}, not times; map timestamp to another column.")
    if unit == "iso":
        return _from_iso(times.cast(pl.String))
    if unit in {"yyyymmdd", "mmdd"}:
        return _from_digits(times, year=MMDD_YEAR if unit == "mmdd" else "")
    if unit == "auto":
        raise ValueError("resolve the unit with guess_unit first")
    numbers = _from_numbers(times, unit)
    texts = times.is_not_null() & _floats(times).is_null()
    if times.dtype == pl.String and texts.any():
        return numbers.scatter(texts.arg_true(), _from_iso(times.filter(texts)))
    return numbers


def guess_unit(times: pl.Series) -> TimeUnit:
    """Unit by the magnitude of the median number; `auto` again where no number is found."""
    if times.dtype != pl.String and not times.dtype.is_numeric():
        return "auto"
    numbers = _floats(times)
    median = numbers.filter(numbers.is_finite()).abs().median()
    if not isinstance(median, float):
        return "auto"
    if median < EARLIEST_USUAL_SECONDS:
        logger.warning(
            "timestamps around %g lie in the first years after 1970 when read as seconds; "
            "if they are not seconds since 1970, pass --time-unit.",
            median,
        )
    return next(unit for limit, unit in MAGNITUDES if median < limit)


def _floats(times: pl.Series) -> pl.Series:
    stripped = times.str.strip_chars() if times.dtype == pl.String else times
    return stripped.cast(pl.Float64, strict=False)


def _from_numbers(times: pl.Series, unit: TimeUnit) -> pl.Series:
    """Whole numbers exactly, fractions to the nearest microsecond; null where they leave 64 bits."""
    stripped = times.str.strip_chars() if times.dtype == pl.String else times
    whole = (
        stripped.cast(pl.Int64, strict=False) if not times.dtype.is_float() else pl.repeat(None, len(times), eager=True)
    )
    factor = MICROSECONDS.get(unit, 1)
    limit = INT64_MAX // factor
    scaled = pl.col("float") * factor if unit != "ns" else pl.col("float") / 1000
    exact = pl.col("whole") * factor if unit != "ns" else pl.col("whole") // 1000
    return (
        pl
        .DataFrame({"whole": whole.cast(pl.Int64), "float": _floats(times)})
        .select(
            pl
            .when(pl.col("whole").is_between(-limit, limit))
            .then(exact)
            .when(pl.col("whole").is_null() & pl.col("float").is_finite())
            .then(scaled.round().cast(pl.Int64, strict=False))
        )
        .to_series()
        .alias(times.name)
    )


def _from_dates(times: pl.Series) -> pl.Series:
    if not isinstance(times.dtype, pl.Date | pl.Datetime):
        raise DataError(
            f"column {times.name!r} holds {times.dtype}, not points in time; map timestamp to another column."
        )
    as_datetime = times.cast(pl.Datetime("us")) if times.dtype == pl.Date else times
    return as_datetime.dt.epoch("us")


def _from_digits(times: pl.Series, year: str) -> pl.Series:
    """Days written as digits, with a year or in `year`; 829 is the 29th of August."""
    texts = times.cast(pl.Int64, strict=False).cast(pl.String) if times.dtype != pl.String else times.str.strip_chars()
    days = ((year + texts.str.zfill(4)) if year else texts).to_frame("day")
    written = days.select(pl.when(pl.col("day").str.contains(r"^\d{8}$")).then("day")).to_series()
    return written.str.to_datetime("%Y%m%d", time_unit="us", strict=False).dt.epoch("us").alias(times.name)


def _from_iso(times: pl.Series) -> pl.Series:
    parts = times.str.strip_chars().str.extract_groups(ISO_8601).struct.unnest()
    text = pl.concat_str(
        pl.col("1"),
        pl.lit(" "),
        pl.col("2").fill_null("00:00"),
        pl.col("3").fill_null(":00"),
        pl.col("4").fill_null("+00"),
        pl.col("5").fill_null("00"),
    )
    moment = text.str.to_datetime("%Y-%m-%d %H:%M:%S%.f%z", time_unit="us", time_zone="UTC", strict=False)
    return parts.select(moment.dt.epoch("us")).to_series().alias(times.name)
