//! What has no type of its own in JSON and is written as a string, in the form pydantic gives it.

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyByteArray, PyBytes, PyDate, PyDateTime, PyDelta, PyString, PyTime};

use super::once::{Once, intern};

/// A class of Python's standard library, looked up once.
pub type Class = Once<Py<PyAny>>;
static UUID: Class = Once::new();
static DECIMAL: Class = Once::new();
static PATH: Class = Once::new();
static ADDRESS: Class = Once::new();
static NETWORK: Class = Once::new();

/// Classes whose `str()` is what pydantic writes.
static TEXT_CLASSES: [(&Class, &str, &str); 5] = [
    (&UUID, "uuid", "UUID"),
    (&DECIMAL, "decimal", "Decimal"),
    (&PATH, "pathlib", "PurePath"),
    (&ADDRESS, "ipaddress", "_BaseAddress"),
    (&NETWORK, "ipaddress", "_BaseNetwork"),
];

/// The class, imported at the first call.
pub fn class<'py>(
    py: Python<'py>,
    cell: &'static Class,
    module: &str,
    name: &str,
) -> PyResult<&'py Bound<'py, PyAny>> {
    cell.get_or_try_make(|| py.import(module)?.getattr(name).map(Bound::unbind))
        .map(|class| class.bind(py))
}

/// What pydantic writes as a string: dates and times, UUID, Decimal, paths, addresses, text in bytes.
pub fn text_of<'py>(value: &Bound<'py, PyAny>) -> PyResult<Option<Bound<'py, PyString>>> {
    let py = value.py();
    if value.is_instance_of::<PyDateTime>() || value.is_instance_of::<PyTime>() {
        let text: String = value.call_method0(intern!(py, "isoformat"))?.extract()?;
        let text =
            text.strip_suffix("+00:00").map_or_else(|| text.clone(), |start| format!("{start}Z"));
        return Ok(Some(PyString::new(py, &text)));
    }
    if value.is_instance_of::<PyDate>() {
        return Ok(Some(value.call_method0(intern!(py, "isoformat"))?.cast_into()?));
    }
    if let Ok(delta) = value.cast::<PyDelta>() {
        return Ok(Some(PyString::new(py, &duration(delta)?)));
    }
    let bytes = value.cast::<PyBytes>().map(|bytes| bytes.as_bytes().to_vec());
    if let Ok(bytes) =
        bytes.or_else(|_| value.cast::<PyByteArray>().map(PyByteArrayMethods::to_vec))
    {
        let text = std::str::from_utf8(&bytes);
        let text = text.map_err(|error| {
            PyValueError::new_err(format!(
                "bytes that are not UTF-8 at byte {}",
                error.valid_up_to()
            ))
        })?;
        return Ok(Some(PyString::new(py, text)));
    }
    for (cell, module, name) in &TEXT_CLASSES {
        if value.is_instance(class(py, cell, module, name)?)? {
            return Ok(Some(value.str()?));
        }
    }
    Ok(None)
}

fn duration(delta: &Bound<'_, PyDelta>) -> PyResult<String> {
    let py = delta.py();
    let field = |name| -> PyResult<i64> { delta.getattr(name)?.extract() };
    let days = field(intern!(py, "days"))?;
    let micros = i128::from(days) * 86_400_000_000
        + i128::from(field(intern!(py, "seconds"))?) * 1_000_000
        + i128::from(field(intern!(py, "microseconds"))?);
    Ok(iso_duration(micros))
}

/// An ISO 8601 duration as pydantic writes it.
fn iso_duration(micros: i128) -> String {
    let sign = if micros < 0 { "-" } else { "" };
    let micros = micros.unsigned_abs();
    let (seconds, fraction) = (micros / 1_000_000, micros % 1_000_000);
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    let (years, days) = (days / 365, days % 365);
    let (hours, minutes, seconds) = (rest / 3600, rest % 3600 / 60, rest % 60);
    let part = |amount: u128, unit: char| match amount {
        0 => String::new(),
        _ => format!("{amount}{unit}"),
    };
    let seconds = match fraction {
        0 => part(seconds, 'S'),
        _ => format!("{seconds}.{}S", format!("{fraction:06}").trim_end_matches('0')),
    };
    let time = [part(hours, 'H'), part(minutes, 'M'), seconds].concat();
    let date = [part(years, 'Y'), part(days, 'D')].concat();
    match (date.as_str(), time.as_str()) {
        ("", "") => "PT0S".to_owned(),
        (_, "") => format!("{sign}P{date}"),
        _ => format!("{sign}P{date}T{time}"),
    }
}
