//! From the core's receipts to `fanwire.Receipt`.

use pyo3::prelude::*;
use pyo3::types::PyType;

use super::once::Once;
use crate::post::{Receipt, Status};

/// The receipt; that of a message that failed, and was counted, is None.
pub fn to_python(py: Python<'_>, receipt: Option<Receipt>) -> PyResult<Py<PyAny>> {
    static CLASS: Once<Py<PyType>> = Once::new();
    let class = CLASS.import(py, "fanwire.recovery", "Receipt")?;
    let status = match receipt.map(|receipt| receipt.status) {
        Some(Status::Published) => "published",
        Some(Status::Queued) => "queued",
        Some(Status::Coalesced) => "coalesced",
        Some(Status::Duplicate) => "duplicate",
        Some(Status::Stale) => "stale",
        None => "failed",
    };
    let Receipt { receivers, position, .. } = receipt.unwrap_or_default();
    let (epoch, offset) =
        position.map(|position| (position.epoch.to_string(), position.offset)).unzip();
    Ok(class.call1((status, receivers, epoch, offset))?.unbind())
}
