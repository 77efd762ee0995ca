//! Live, read-only views of the manager's maps, for people and tests that look into them.

use std::sync::Arc;

use pyo3::prelude::*;
use pyo3::types::{PyDict, PyFrozenSet, PyIterator, PyList, PyMapping};

use super::connections::ManagerState;
use crate::registry::Map;

/// A live, read-only view of one of the manager's maps, from a name to a set.
///
/// Behaves as the `defaultdict(set)` it stands for: `view[missing]` is an empty set (nothing is
/// created by looking), `view.get(missing)` is None, and it is equal to a dict of the same content.
#[pyclass(frozen, mapping, module = "fanwire._core")]
pub struct MapView {
    state: Arc<ManagerState>,
    map: Map,
}

impl MapView {
    pub fn new(state: Arc<ManagerState>, map: Map) -> Self {
        Self { state, map }
    }

    /// None when the name is not in the map.
    fn find<'py>(
        &self,
        py: Python<'py>,
        key: &Bound<'py, PyAny>,
    ) -> PyResult<Option<Bound<'py, PyFrozenSet>>> {
        // What is no str is simply not a key, as in a dict.
        let Ok(key) = key.extract::<&str>() else { return Ok(None) };
        let ids = |found: Option<Vec<&str>>| {
            found.map(|ids| ids.into_iter().map(String::from).collect::<Vec<_>>())
        };
        match self.map {
            Map::UserConnections => self
                .state
                .connections_of(py, key)
                .map(|connections| PyFrozenSet::new(py, connections))
                .transpose(),
            Map::UploadSubscribers => {
                let found = self.state.router.inspect(|registry| ids(registry.watchers(key)));
                found.map(|found| PyFrozenSet::new(py, found)).transpose()
            }
            Map::UserSubscriptions => {
                let found = self.state.router.inspect(|registry| ids(registry.watched_by(key)));
                found.map(|found| PyFrozenSet::new(py, found)).transpose()
            }
        }
    }

    fn to_dict<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let dict = PyDict::new(py);
        for name in self.state.router.names(self.map) {
            let key = name.into_pyobject(py)?.into_any();
            // Gone between the two looks, in another thread: then it is not there.
            if let Some(set) = self.find(py, &key)? {
                dict.set_item(key, set)?;
            }
        }
        Ok(dict)
    }
}

#[pymethods]
impl MapView {
    fn __getitem__<'py>(&self, key: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyFrozenSet>> {
        let py = key.py();
        key.hash()?; // an unhashable key is a TypeError, as in a dict
        match self.find(py, key)? {
            Some(set) => Ok(set),
            None => PyFrozenSet::empty(py),
        }
    }

    fn __contains__(&self, key: &Bound<'_, PyAny>) -> PyResult<bool> {
        key.hash()?;
        Ok(self.find(key.py(), key)?.is_some())
    }

    fn __len__(&self) -> usize {
        self.state.router.inspect(|registry| registry.names(self.map).len())
    }

    fn __iter__<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyIterator>> {
        PyList::new(py, self.state.router.names(self.map))?.try_iter()
    }

    /// The set for a name, or `default` when the name is not in the map.
    #[pyo3(signature = (key, default=None, /))]
    fn get<'py>(
        &self,
        key: &Bound<'py, PyAny>,
        default: Option<Bound<'py, PyAny>>,
    ) -> PyResult<Option<Bound<'py, PyAny>>> {
        key.hash()?;
        Ok(self.find(key.py(), key)?.map(Bound::into_any).or(default))
    }

    /// The names, as they are now.
    fn keys<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self.to_dict(py)?.call_method0("keys")
    }

    /// The sets, as they are now.
    fn values<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self.to_dict(py)?.call_method0("values")
    }

    /// Names and sets, as they are now.
    fn items<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self.to_dict(py)?.call_method0("items")
    }

    fn __eq__<'py>(
        &self,
        py: Python<'py>,
        other: &Bound<'py, PyAny>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let Ok(other) = other.cast::<PyMapping>() else {
            return Ok(py.NotImplemented().into_bound(py));
        };
        let theirs = PyDict::new(py);
        theirs.update(other)?;
        Ok(self.to_dict(py)?.eq(theirs)?.into_pyobject(py)?.to_owned().into_any())
    }

    fn __repr__(&self, py: Python<'_>) -> PyResult<String> {
        Ok(format!("MapView({})", self.to_dict(py)?.repr()?))
    }
}
