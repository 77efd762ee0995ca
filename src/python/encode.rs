//! From a Python object to JSON, as pydantic would encode it, without pydantic.
//!
//! What has no JSON form is refused with the path to it; nothing is replaced by something similar.

use std::ops::{Deref, DerefMut};

use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{
    PyBool, PyByteArray, PyBytes, PyDict, PyFloat, PyFrozenSet, PyInt, PyList, PySet, PyString,
    PyTuple, PyType,
};

use super::leaving;
use super::once::intern;
use super::path::shown;
use super::scalars::{self, Class, class};
use crate::message;

/// Deeper nesting is refused; it also ends circular structures, long before the stack does.
const MAX_DEPTH: usize = 200;

/// A message as JSON text in bytes. `bytes` (or a bytearray) are JSON already: checked, then taken as they are.
///
/// Raises TypeError or ValueError with the path to what cannot be encoded.
pub fn to_bytes(message: &Bound<'_, PyAny>) -> PyResult<Vec<u8>> {
    let bytes = message.cast::<PyBytes>().map(|bytes| bytes.as_bytes().to_vec());
    let bytes = bytes.or_else(|_| message.cast::<PyByteArray>().map(PyByteArrayMethods::to_vec));
    if let Ok(bytes) = bytes {
        let checked = message::check_json(&bytes);
        checked.map_err(|why| {
            PyValueError::new_err(format!("message: bytes must be encoded JSON: {why}"))
        })?;
        return Ok(bytes);
    }
    let _nested = leaving::nest()?;
    let mut out = Out::new(true);
    encode(message, &mut out, 0).map_err(|failure| failure.into_error(message.py()))?;
    Ok(out.bytes)
}

/// As [`to_bytes`], as text.
pub fn to_text(message: &Bound<'_, PyAny>) -> PyResult<String> {
    let bytes = to_bytes(message)?;
    String::from_utf8(bytes).map_err(|error| PyValueError::new_err(format!("message: {error}")))
}

/// Where JSON is written.
struct Out {
    bytes: Vec<u8>,
    /// Whether `bytes` are text, as for pydantic, or have no form, as for `json`.
    takes_bytes: bool,
}

impl Out {
    fn new(takes_bytes: bool) -> Self {
        Self { bytes: Vec::with_capacity(256), takes_bytes }
    }

    fn check(&self, value: &Bound<'_, PyAny>) -> Encoded {
        let is_bytes = value.is_instance_of::<PyBytes>() || value.is_instance_of::<PyByteArray>();
        if is_bytes && !self.takes_bytes {
            let kind = type_name(&value.get_type());
            return Err(type_error(format!("cannot encode {kind} as JSON")));
        }
        Ok(())
    }
}

impl Deref for Out {
    type Target = Vec<u8>;

    fn deref(&self) -> &Vec<u8> {
        &self.bytes
    }
}

impl DerefMut for Out {
    fn deref_mut(&mut self) -> &mut Vec<u8> {
        &mut self.bytes
    }
}

/// The message of a topic as text.
pub fn to_value(message: &Bound<'_, PyAny>) -> PyResult<String> {
    let mut out = Out::new(false);
    encode(message, &mut out, 0).map_err(|failure| failure.into_error(message.py()))?;
    String::from_utf8(out.bytes).map_err(|error| PyValueError::new_err(format!("message: {error}")))
}

/// What is published for a topic: `{"topic":…,"message":…}`, and the session it is not for.
pub fn to_envelope(
    topic: &str,
    message: &Bound<'_, PyAny>,
    except: Option<&str>,
) -> PyResult<Vec<u8>> {
    let mut out = Out::new(false);
    let text = |text: &str, out: &mut Out| {
        serde_json::to_writer(&mut out.bytes, text)
            .map_err(|error| PyValueError::new_err(error.to_string()))
    };
    out.extend_from_slice(b"{\"topic\":");
    text(topic, &mut out)?;
    out.extend_from_slice(b",\"message\":");
    encode(message, &mut out, 0).map_err(|failure| failure.into_error(message.py()))?;
    if let Some(except) = except {
        out.extend_from_slice(b",\"except\":");
        text(except, &mut out)?;
    }
    out.push(b'}');
    Ok(out.bytes)
}

/// Why and where: the path is collected from the inside out.
struct Failure {
    error: PyErr,
    path: Vec<String>,
}

impl Failure {
    fn under(mut self, step: impl FnOnce() -> String) -> Self {
        self.path.push(step());
        self
    }

    /// The same kind of error with the path in front. What the application's own code raised, from a
    /// `model_dump_json` say, is passed on as it is, with the path as a note.
    fn into_error(self, py: Python<'_>) -> PyErr {
        let path = shown(&self.path);
        let kind = self.error.get_type(py);
        let located = format!("message{path}: {}", self.error.value(py));
        if kind.is(py.get_type::<PyTypeError>()) {
            PyTypeError::new_err(located)
        } else if self.error.is_instance_of::<PyValueError>(py) {
            let raised = PyValueError::new_err(located);
            if !kind.is(py.get_type::<PyValueError>()) {
                raised.set_cause(py, Some(self.error));
            }
            raised
        } else {
            let note = format!("while encoding message{path}");
            // Best effort: an exception that refuses notes is raised without one.
            drop(self.error.value(py).call_method1(intern!(py, "add_note"), (note,)));
            self.error
        }
    }
}

impl From<PyErr> for Failure {
    fn from(error: PyErr) -> Self {
        Self { error, path: Vec::new() }
    }
}

fn type_error(text: String) -> Failure {
    PyTypeError::new_err(text).into()
}

fn value_error(text: impl Into<String>) -> Failure {
    PyValueError::new_err(text.into()).into()
}

type Encoded = Result<(), Failure>;

fn encode(value: &Bound<'_, PyAny>, out: &mut Out, depth: usize) -> Encoded {
    if depth > MAX_DEPTH {
        return Err(value_error(format!(
            "nested more than {MAX_DEPTH} levels deep (a circular reference?)"
        )));
    }
    // Exact types first: they are nearly everything, and need no look into a class.
    if let Ok(text) = value.cast_exact::<PyString>() {
        return write_text(text, out);
    }
    if let Ok(dict) = value.cast_exact::<PyDict>() {
        return encode_dict(dict, out, depth);
    }
    if let Ok(int) = value.cast_exact::<PyInt>() {
        return write_int(int, out);
    }
    if value.is_none() {
        out.extend_from_slice(b"null");
        return Ok(());
    }
    if let Ok(boolean) = value.cast_exact::<PyBool>() {
        out.extend_from_slice(if boolean.is_true() { b"true" } else { b"false" });
        return Ok(());
    }
    if let Ok(float) = value.cast_exact::<PyFloat>() {
        return write_float(float.value(), out);
    }
    if let Ok(list) = value.cast_exact::<PyList>() {
        return encode_items(list.iter(), out, depth);
    }
    if let Ok(tuple) = value.cast_exact::<PyTuple>() {
        return encode_items(tuple.iter(), out, depth);
    }
    encode_other(value, out, depth)
}

/// Everything that is not one of JSON's own types.
fn encode_other(value: &Bound<'_, PyAny>, out: &mut Out, depth: usize) -> Encoded {
    let py = value.py();
    let _inside = leaving::enter()?;
    let kind = value.get_type();
    if value.is_instance_of::<PyType>() {
        return Err(type_error(format!(
            "cannot encode the class {}",
            type_name(value.cast().map_err(PyErr::from)?)
        )));
    }
    if let Some(dump) = kind.getattr_opt(intern!(py, "model_dump_json"))? {
        return encode_model(value, &kind, &dump, out);
    }
    if value.is_instance(class(py, &ENUM, "enum", "Enum")?)? {
        return encode(&value.getattr(intern!(py, "value"))?, out, depth + 1);
    }
    if kind.hasattr(intern!(py, "__dataclass_fields__"))? {
        return encode_dataclass(value, out, depth);
    }
    if kind.hasattr(intern!(py, "__struct_fields__"))? {
        return encode_struct(value, out, depth);
    }
    if let Ok(text) = value.cast::<PyString>() {
        return write_text(text, out);
    }
    if let Ok(int) = value.cast::<PyInt>() {
        return write_int(int, out);
    }
    if let Ok(float) = value.cast::<PyFloat>() {
        return write_float(float.value(), out);
    }
    if let Ok(dict) = value.cast::<PyDict>() {
        return encode_dict(dict, out, depth);
    }
    out.check(value)?;
    if let Some(text) = scalars::text_of(value)? {
        return write_text(&text, out);
    }
    let is_collection = value.is_instance_of::<PyList>()
        || value.is_instance_of::<PyTuple>()
        || value.is_instance_of::<PySet>()
        || value.is_instance_of::<PyFrozenSet>()
        || value.is_instance(class(py, &DEQUE, "collections", "deque")?)?;
    if is_collection {
        // A copy: the original may change while user code runs below.
        let items = value.try_iter()?.collect::<PyResult<Vec<_>>>()?;
        return encode_items(items.into_iter(), out, depth);
    }
    if value.is_instance(class(py, &MAPPING, "collections.abc", "Mapping")?)? {
        let dict = PyDict::new(py);
        dict.update(value.cast().map_err(PyErr::from)?)?;
        return encode_dict(&dict, out, depth);
    }
    Err(type_error(format!("cannot encode {} as JSON", type_name(&kind))))
}

fn encode_items<'py>(
    items: impl Iterator<Item = Bound<'py, PyAny>>,
    out: &mut Out,
    depth: usize,
) -> Encoded {
    out.push(b'[');
    for (index, item) in items.enumerate() {
        if index > 0 {
            out.push(b',');
        }
        encode(&item, out, depth + 1).map_err(|failure| failure.under(|| format!("[{index}]")))?;
    }
    out.push(b']');
    Ok(())
}

fn encode_dict(dict: &Bound<'_, PyDict>, out: &mut Out, depth: usize) -> Encoded {
    out.push(b'{');
    // A list of the items: user code that runs below may change the dict.
    for (index, item) in dict.items().iter().enumerate() {
        let (key, value): (Bound<'_, PyAny>, Bound<'_, PyAny>) = item.extract()?;
        if index > 0 {
            out.push(b',');
        }
        let step =
            || key.repr().map_or_else(|_| "[?]".to_owned(), |key| format!("[{}]", quoted(&key)));
        write_key(&key, out, depth).map_err(|failure| failure.under(step))?;
        out.push(b':');
        encode(&value, out, depth + 1).map_err(|failure| failure.under(step))?;
    }
    out.push(b'}');
    Ok(())
}

/// A key as it would be written in Python, with double quotes.
fn quoted(repr: &Bound<'_, PyString>) -> String {
    let text = repr.to_string();
    match text.strip_prefix('\'').and_then(|text| text.strip_suffix('\'')) {
        Some(inner) if !inner.contains(['"', '\\']) => format!("\"{inner}\""),
        _ => text,
    }
}

/// JSON has only string keys; what else may be one is written as pydantic does.
fn write_key(key: &Bound<'_, PyAny>, out: &mut Out, depth: usize) -> Encoded {
    let py = key.py();
    if let Ok(text) = key.cast_exact::<PyString>() {
        return write_text(text, out);
    }
    if depth > MAX_DEPTH {
        return Err(value_error("a key nested too deeply"));
    }
    if key.is_instance(class(py, &ENUM, "enum", "Enum")?)? {
        return write_key(&key.getattr(intern!(py, "value"))?, out, depth + 1);
    }
    if let Ok(text) = key.cast::<PyString>() {
        return write_text(text, out);
    }
    let mut plain = Out::new(out.takes_bytes);
    if key.is_none() {
        plain.extend_from_slice(b"None");
    } else if key.is_instance_of::<PyBool>()
        || key.is_instance_of::<PyInt>()
        || key.is_instance_of::<PyFloat>()
    {
        encode(key, &mut plain, depth)?;
    } else if let Some(text) = scalars::text_of(key)? {
        out.check(key)?;
        return write_text(&text, out);
    } else {
        return Err(type_error(format!(
            "cannot use {} as a key in JSON",
            type_name(&key.get_type())
        )));
    }
    out.push(b'"');
    out.append(&mut plain.bytes);
    out.push(b'"');
    Ok(())
}

fn encode_dataclass(value: &Bound<'_, PyAny>, out: &mut Out, depth: usize) -> Encoded {
    let py = value.py();
    let fields = class(py, &FIELDS, "dataclasses", "fields")?.call1((value,))?;
    let mut attributes = Vec::new();
    for field in fields.try_iter()? {
        let name: String = field?.getattr(intern!(py, "name"))?.extract()?;
        let attribute = value.getattr(name.as_str());
        let attribute =
            attribute.map_err(|error| Failure::from(error).under(|| format!(".{name}")))?;
        attributes.push((name.clone(), name, attribute));
    }
    encode_attributes(attributes, out, depth)
}

/// A `msgspec.Struct`, with the names and the tag that msgspec would encode, without what is unset.
fn encode_struct(value: &Bound<'_, PyAny>, out: &mut Out, depth: usize) -> Encoded {
    let py = value.py();
    let kind = value.get_type();
    let config = kind.getattr(intern!(py, "__struct_config__"))?;
    let names: Vec<String> = kind.getattr(intern!(py, "__struct_fields__"))?.extract()?;
    let shown: Vec<String> = kind.getattr(intern!(py, "__struct_encode_fields__"))?.extract()?;
    let tag = config.getattr(intern!(py, "tag"))?;
    if config.getattr(intern!(py, "array_like"))?.is_truthy()? {
        let mut items = if tag.is_none() { Vec::new() } else { vec![tag] };
        for name in &names {
            items.push(value.getattr(name.as_str())?);
        }
        return encode_items(items.into_iter(), out, depth);
    }
    let mut attributes = Vec::with_capacity(names.len() + 1);
    if !tag.is_none() {
        let field: String = config.getattr(intern!(py, "tag_field"))?.extract()?;
        attributes.push((field.clone(), field, tag));
    }
    for (name, shown) in names.into_iter().zip(shown) {
        let attribute = value.getattr(name.as_str())?;
        if attribute.get_type().name()? != "UnsetType" {
            attributes.push((name, shown, attribute));
        }
    }
    encode_attributes(attributes, out, depth)
}

/// Attributes by their name in Python and in JSON.
fn encode_attributes(
    attributes: Vec<(String, String, Bound<'_, PyAny>)>,
    out: &mut Out,
    depth: usize,
) -> Encoded {
    out.push(b'{');
    for (index, (name, shown, value)) in attributes.into_iter().enumerate() {
        if index > 0 {
            out.push(b',');
        }
        write_str(&shown, out)?;
        out.push(b':');
        encode(&value, out, depth + 1).map_err(|failure| failure.under(|| format!(".{name}")))?;
    }
    out.push(b'}');
    Ok(())
}

/// A pydantic model, or anything that has its method.
fn encode_model(
    value: &Bound<'_, PyAny>,
    kind: &Bound<'_, PyType>,
    dump: &Bound<'_, PyAny>,
    out: &mut Out,
) -> Encoded {
    static PLAIN: Class = Class::new();
    let py = value.py();
    let has_serializer = kind.getattr_opt(intern!(py, "__pydantic_serializer__"))?;
    if let Some(serializer) = has_serializer {
        let plain = PLAIN.get_or_try_make(|| {
            let model = py.import("pydantic")?.getattr("BaseModel")?;
            model.getattr("model_dump_json").map(Bound::unbind)
        })?;
        // Not overridden: straight to what it would call. 1.1 us instead of 1.8, and JSON for sure.
        if dump.is(plain) {
            let json = serializer.call_method1(intern!(py, "to_json"), (value,))?;
            out.extend_from_slice(json.cast::<PyBytes>().map_err(PyErr::from)?.as_bytes());
            return Ok(());
        }
    }
    embed(&value.call_method0(intern!(py, "model_dump_json"))?, out)
}

/// What `model_dump_json` returned: taken at its word if it is a str, checked if it is bytes.
fn embed(text: &Bound<'_, PyAny>, out: &mut Out) -> Encoded {
    let bytes = match text.cast::<PyString>() {
        Ok(text) => text.to_str()?.as_bytes(),
        Err(_) => text
            .cast::<PyBytes>()
            .map_err(|_| {
                type_error(format!(
                    "model_dump_json() returned {}, not str",
                    type_name(&text.get_type())
                ))
            })?
            .as_bytes(),
    };
    message::check_json(bytes)
        .map_err(|why| value_error(format!("model_dump_json() returned no JSON: {why}")))?;
    out.extend_from_slice(bytes);
    Ok(())
}

fn write_text(text: &Bound<'_, PyString>, out: &mut Out) -> Encoded {
    let text =
        text.to_str().map_err(|_| value_error("a str with a lone surrogate has no UTF-8 form"))?;
    write_str(text, out)
}

fn write_str(text: &str, out: &mut Out) -> Encoded {
    serde_json::to_writer(&mut out.bytes, text).map_err(|error| value_error(error.to_string()))
}

fn write_int(int: &Bound<'_, PyInt>, out: &mut Out) -> Encoded {
    if let Ok(small) = int.extract::<i64>() {
        return serde_json::to_writer(&mut out.bytes, &small)
            .map_err(|error| value_error(error.to_string()));
    }
    // `int.__repr__`: a subclass may print itself otherwise.
    let digits =
        int.py().get_type::<PyInt>().call_method1(intern!(int.py(), "__repr__"), (int,))?;
    out.extend_from_slice(digits.cast::<PyString>().map_err(PyErr::from)?.to_str()?.as_bytes());
    Ok(())
}

fn write_float(float: f64, out: &mut Out) -> Encoded {
    if !float.is_finite() {
        let shown = if float.is_nan() {
            "nan"
        } else if float > 0.0 {
            "inf"
        } else {
            "-inf"
        };
        return Err(value_error(format!("{shown} has no JSON form")));
    }
    serde_json::to_writer(&mut out.bytes, &float).map_err(|error| value_error(error.to_string()))
}

static ENUM: Class = Class::new();
static DEQUE: Class = Class::new();
static MAPPING: Class = Class::new();
static FIELDS: Class = Class::new();

/// Module and name, as Python shows a type.
fn type_name(kind: &Bound<'_, PyType>) -> String {
    kind.fully_qualified_name().map_or_else(|_| "an object".to_owned(), |name| format!("{name}"))
}
