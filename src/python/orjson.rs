//! From a Python object to JSON as `orjson.dumps(value, default=str)` makes it.
//!
//! What that refuses is refused here: keys that are no `str`, integers of more than 64 bits, lone
//! surrogates, more than 254 levels. `tests/test_events_encoding.py` holds one against the other.

use pyo3::exceptions::{PyException, PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{
    PyBool, PyDate, PyDateTime, PyDelta, PyDict, PyFloat, PyInt, PyList, PyString, PyTime, PyTuple,
};

use super::leaving;
use super::once::intern;
use super::path::shown;
use super::scalars::{Class, class};

/// As deep as orjson goes, which also ends circular structures.
const MAX_DEPTH: usize = 254;

/// Where JSON is written, and how much of it there may be.
pub struct Out {
    pub bytes: Vec<u8>,
    pub limit: usize,
}

impl Out {
    pub fn new(limit: usize) -> Self {
        Self { bytes: Vec::with_capacity(256), limit }
    }

    pub fn check(&self) -> Encoded {
        if self.bytes.len() > self.limit { Err(Failure::TooLarge) } else { Ok(()) }
    }
}

/// Why not.
pub enum Failure {
    /// More than there may be. What was written is the beginning of it.
    TooLarge,
    /// It has no JSON form; the path is collected from the inside out.
    Unfit { reason: String, cause: Option<PyErr>, path: Vec<String> },
    /// Not an error: somebody wants the program to end.
    Passing(PyErr),
}

impl Failure {
    pub fn under(mut self, step: impl FnOnce() -> String) -> Self {
        if let Self::Unfit { path, .. } = &mut self {
            path.push(step());
        }
        self
    }

    pub fn into_error(self, py: Python<'_>, what: &str, limit: usize) -> PyErr {
        match self {
            Self::TooLarge => {
                PyValueError::new_err(format!("{what}: more than {limit} bytes as JSON"))
            }
            Self::Unfit { reason, cause, path } => {
                let error = PyTypeError::new_err(format!("{what}{}: {reason}", shown(&path)));
                error.set_cause(py, cause);
                error
            }
            Self::Passing(error) => error,
        }
    }
}

impl From<PyErr> for Failure {
    fn from(error: PyErr) -> Self {
        Python::attach(|py| {
            if error.is_instance_of::<PyException>(py) {
                let reason = format!("{} was raised", type_name(error.value(py)));
                Self::Unfit { reason, cause: Some(error), path: Vec::new() }
            } else {
                Self::Passing(error)
            }
        })
    }
}

fn unfit(reason: impl Into<String>) -> Failure {
    Failure::Unfit { reason: reason.into(), cause: None, path: Vec::new() }
}

pub type Encoded = Result<(), Failure>;

pub fn encode(value: &Bound<'_, PyAny>, out: &mut Out, depth: usize) -> Encoded {
    if encode_plain(value, out)? {
        return Ok(());
    }
    if let Ok(dict) = value.cast_exact::<PyDict>() {
        return encode_dict(dict, out, depth);
    }
    if let Ok(list) = value.cast_exact::<PyList>() {
        return encode_items(list.as_any(), out, depth);
    }
    if let Ok(tuple) = value.cast_exact::<PyTuple>() {
        return encode_items(tuple.as_any(), out, depth);
    }
    encode_other(value, out, depth)
}

/// What runs no code of the application's: JSON's own scalars. False if it is something else.
fn encode_plain(value: &Bound<'_, PyAny>, out: &mut Out) -> Result<bool, Failure> {
    if let Ok(string) = value.cast_exact::<PyString>() {
        text(string, out)?;
    } else if let Ok(int) = value.cast_exact::<PyInt>() {
        write_int(int, out)?;
    } else if value.is_none() {
        out.bytes.extend_from_slice(b"null");
    } else if let Ok(boolean) = value.cast_exact::<PyBool>() {
        out.bytes.extend_from_slice(if boolean.is_true() { b"true" } else { b"false" });
    } else if let Ok(float) = value.cast_exact::<PyFloat>() {
        let float = float.value();
        if float.is_finite() {
            write(&float, out)?;
        } else {
            out.bytes.extend_from_slice(b"null");
        }
    } else {
        return Ok(false);
    }
    Ok(true)
}

fn encode_other(value: &Bound<'_, PyAny>, out: &mut Out, depth: usize) -> Encoded {
    static ENUM: Class = Class::new();
    let py = value.py();
    if value.is_exact_instance_of::<PyDateTime>() {
        return text(&moment(value)?, out);
    }
    if value.is_exact_instance_of::<PyDate>() {
        return text(
            value.call_method0(intern!(py, "isoformat"))?.cast().map_err(PyErr::from)?,
            out,
        );
    }
    if value.is_exact_instance_of::<PyTime>() {
        if !value.getattr(intern!(py, "tzinfo"))?.is_none() {
            return Err(unfit("a datetime.time must have no tzinfo"));
        }
        return text(
            value.call_method0(intern!(py, "isoformat"))?.cast().map_err(PyErr::from)?,
            out,
        );
    }
    if value.is_instance(class(py, &ENUM, "enum", "Enum")?)? {
        deeper(depth)?;
        return encode(&value.getattr(intern!(py, "value"))?, out, depth + 1);
    }
    if let Ok(string) = value.cast::<PyString>() {
        return text(string, out);
    }
    if let Ok(int) = value.cast::<PyInt>() {
        return write_int(int, out);
    }
    if value.is_instance_of::<PyList>() {
        return encode_items(value, out, depth);
    }
    if let Ok(dict) = value.cast::<PyDict>() {
        return encode_dict(dict, out, depth);
    }
    let _inside = leaving::enter().map_err(Failure::from)?;
    // Of the class itself, as orjson looks: what inherits from a dataclass and is none is no dataclass.
    let attributes = value.get_type().getattr(intern!(py, "__dict__"))?;
    if attributes.contains(intern!(py, "__dataclass_fields__"))? {
        return encode_dataclass(value, &attributes, out, depth);
    }
    let shown = value.str().map_err(|error| match Failure::from(error) {
        Failure::Unfit { cause, path, .. } => {
            let reason = format!("str() of {} raised", type_name(value));
            Failure::Unfit { reason, cause, path }
        }
        other => other,
    })?;
    text(&shown, out)
}

/// A datetime as RFC 3339 has it, where an offset has no seconds.
fn moment<'py>(value: &Bound<'py, PyAny>) -> Result<Bound<'py, PyString>, Failure> {
    let py = value.py();
    let whole = value.call_method0(intern!(py, "isoformat"))?;
    let offset = value.call_method0(intern!(py, "utcoffset"))?;
    let Ok(offset) = offset.cast::<PyDelta>() else {
        return Ok(whole.cast_into().map_err(PyErr::from)?);
    };
    let seconds: f64 = offset.call_method0(intern!(py, "total_seconds"))?.extract()?;
    if seconds % 60.0 == 0.0 {
        return Ok(whole.cast_into().map_err(PyErr::from)?);
    }
    let naive = PyDict::new(py);
    naive.set_item(intern!(py, "tzinfo"), py.None())?;
    let naive = value.call_method(intern!(py, "replace"), (), Some(&naive))?;
    let naive = naive.call_method0(intern!(py, "isoformat"))?;
    let sign = if seconds < 0.0 { '-' } else { '+' };
    let minutes = (seconds.abs() / 60.0).round();
    let text = format!("{naive}{sign}{:02}:{:02}", (minutes / 60.0).floor(), minutes % 60.0);
    Ok(PyString::new(py, &text))
}

fn encode_items(items: &Bound<'_, PyAny>, out: &mut Out, depth: usize) -> Encoded {
    deeper(depth)?;
    out.bytes.push(b'[');
    // By index: the list may change while the application's code runs below.
    let mut index = 0;
    while index < items.len()? {
        let item = items.get_item(index)?;
        if index > 0 {
            out.bytes.push(b',');
        }
        encode(&item, out, depth + 1).map_err(|failure| failure.under(|| format!("[{index}]")))?;
        out.check()?;
        index += 1;
    }
    out.bytes.push(b']');
    Ok(())
}

pub fn encode_dict(dict: &Bound<'_, PyDict>, out: &mut Out, depth: usize) -> Encoded {
    deeper(depth)?;
    out.bytes.push(b'{');
    each_item(dict, out, |key, value, out| {
        write_key(key, out)?;
        encode(value, out, depth + 1).map_err(|failure| failure.under(|| step(key)))?;
        out.check()
    })?;
    out.bytes.push(b'}');
    Ok(())
}

fn encode_dataclass(
    value: &Bound<'_, PyAny>,
    of_class: &Bound<'_, PyAny>,
    out: &mut Out,
    depth: usize,
) -> Encoded {
    let py = value.py();
    deeper(depth)?;
    let attributes = PyDict::new(py);
    let own = value.getattr_opt(intern!(py, "__dict__"))?;
    if let Some(own) = own.filter(|_| !of_class.contains(intern!(py, "__slots__")).unwrap_or(true))
    {
        attributes.update(own.cast().map_err(PyErr::from)?)?;
    } else {
        let fields = of_class.get_item(intern!(py, "__dataclass_fields__"))?;
        for field in fields.cast::<PyDict>().map_err(PyErr::from)?.values() {
            let kind = field.getattr(intern!(py, "_field_type"))?.repr()?;
            if kind.to_str()? == "_FIELD" {
                let name = field.getattr(intern!(py, "name"))?;
                attributes.set_item(&name, value.getattr(name.cast().map_err(PyErr::from)?)?)?;
            }
        }
    }
    let mut is_first = true;
    out.bytes.push(b'{');
    for (name, attribute) in attributes.iter() {
        if name.cast::<PyString>().is_ok_and(|name| name.to_str().is_ok_and(|n| n.starts_with('_')))
        {
            continue;
        }
        if !std::mem::take(&mut is_first) {
            out.bytes.push(b',');
        }
        write_key(&name, out)?;
        encode(&attribute, out, depth + 1)
            .map_err(|failure| failure.under(|| format!(".{name}")))?;
        out.check()?;
    }
    out.bytes.push(b'}');
    Ok(())
}

fn deeper(depth: usize) -> Encoded {
    if depth < MAX_DEPTH {
        return Ok(());
    }
    Err(unfit(format!("nested more than {MAX_DEPTH} levels deep (a circular reference?)")))
}

/// Writes the members of a dict, with commas between them.
///
/// The items are copied only from the first value on whose encoding may run the application's code,
/// which may change the dict: most log lines have none, and the copy is a fifth of what they cost.
pub fn each_item<'py>(
    dict: &Bound<'py, PyDict>,
    out: &mut Out,
    mut write: impl FnMut(&Bound<'py, PyAny>, &Bound<'py, PyAny>, &mut Out) -> Encoded,
) -> Encoded {
    let mut written = 0;
    for (key, value) in dict.iter() {
        if !is_plain(&value) {
            break;
        }
        if written > 0 {
            out.bytes.push(b',');
        }
        write(&key, &value, out)?;
        written += 1;
    }
    if written == dict.len() {
        return Ok(());
    }
    for item in dict.items().iter().skip(written) {
        let (key, value): (Bound<'py, PyAny>, Bound<'py, PyAny>) = item.extract()?;
        if written > 0 {
            out.bytes.push(b',');
        }
        write(&key, &value, out)?;
        written += 1;
    }
    Ok(())
}

fn is_plain(value: &Bound<'_, PyAny>) -> bool {
    value.is_exact_instance_of::<PyString>()
        || value.is_exact_instance_of::<PyInt>()
        || value.is_none()
        || value.is_exact_instance_of::<PyBool>()
        || value.is_exact_instance_of::<PyFloat>()
}

pub fn write_key(key: &Bound<'_, PyAny>, out: &mut Out) -> Encoded {
    let Ok(key) = key.cast_exact::<PyString>() else {
        return Err(unfit(format!("keys must be str, not {}", type_name(key))));
    };
    text(key, out)?;
    out.bytes.push(b':');
    Ok(())
}

/// A key as a step of a path.
pub fn step(key: &Bound<'_, PyAny>) -> String {
    key.repr().map_or_else(|_| "[?]".to_owned(), |key| format!("[{key}]"))
}

pub fn text(text: &Bound<'_, PyString>, out: &mut Out) -> Encoded {
    let text = text.to_str().map_err(|_| unfit("a str with a lone surrogate has no UTF-8 form"))?;
    let room = out.limit.saturating_sub(out.bytes.len());
    if text.len() > room {
        let end = (0..=room).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
        write(&text[..end], out)?;
        return Err(Failure::TooLarge);
    }
    write(text, out)
}

fn write_int(int: &Bound<'_, PyInt>, out: &mut Out) -> Encoded {
    if let Ok(int) = int.extract::<i64>() {
        return write(&int, out);
    }
    match int.extract::<u64>() {
        Ok(int) => write(&int, out),
        Err(_) => Err(unfit("an int of more than 64 bits")),
    }
}

pub fn write<T: serde::Serialize + ?Sized>(value: &T, out: &mut Out) -> Encoded {
    serde_json::to_writer(&mut out.bytes, value).map_err(|error| unfit(error.to_string()))
}

fn type_name(value: &Bound<'_, PyAny>) -> String {
    let name = value.get_type().fully_qualified_name();
    name.map_or_else(|_| "an object".to_owned(), |name| name.to_string())
}
