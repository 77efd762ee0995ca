//! The Python module: classes, functions, and the fork hooks.

mod answer;
mod at_exit;
mod bridge;
mod broker;
mod callbacks;
mod connections;
mod coroutine;
mod current;
mod decode;
mod encode;
mod errors;
mod event_json;
mod event_publisher;
mod ffi;
mod leaving;
mod logging;
mod manager;
mod memory_pubsub;
mod migrate;
mod once;
mod operation;
mod options;
mod orjson;
mod path;
mod protocol;
mod publisher;
mod pubsub;
mod pump;
mod pumps;
mod receipts;
mod records;
mod scalars;
mod sessions;
mod slot;
mod states;
mod steps;
mod topics;
mod turns;
mod views;
mod waiting;
mod walk;

use pyo3::prelude::*;

use crate::runtime;

/// The native module of fanwire. Import its names from `fanwire`.
#[pymodule]
mod _core {
    use pyo3::prelude::*;
    use pyo3::types::PyDict;

    #[pymodule_export]
    use super::current::{get_publisher, init_publisher};
    #[pymodule_export]
    use super::event_publisher::EventPublisher;
    #[pymodule_export]
    use super::manager::{ConnectionManager, get_manager, init_manager};
    #[pymodule_export]
    use super::memory_pubsub::MemoryPubSub;
    #[pymodule_export]
    use super::migrate::{migrate, schema_sql};
    #[pymodule_export]
    use super::protocol::ClientMessage;
    #[pymodule_export]
    use super::publisher::UploadProgressPublisher;
    #[pymodule_export]
    use super::pubsub::{BrokerPubSub, PostgresPubSub, RedisPubSub};
    #[pymodule_export]
    use super::views::MapView;

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        let py = module.py();
        super::once::settle(py);
        module.add("__version__", env!("CARGO_PKG_VERSION"))?;
        module
            .add("__build_profile__", if cfg!(debug_assertions) { "debug" } else { "release" })?;
        let abc = py.import("collections.abc")?;
        abc.getattr("Mapping")?.call_method1("register", (module.getattr("MapView")?,))?;
        let hooks = PyDict::new(py);
        hooks.set_item("before", wrap_pyfunction!(super::before_fork, module)?)?;
        hooks
            .set_item("after_in_parent", wrap_pyfunction!(super::after_fork_in_parent, module)?)?;
        hooks.set_item("after_in_child", wrap_pyfunction!(super::after_fork_in_child, module)?)?;
        py.import("os")?.call_method("register_at_fork", (), Some(&hooks))?;
        super::at_exit::register(module)?;
        Ok(())
    }
}

#[pyfunction]
fn before_fork() {
    runtime::before_fork();
}

#[pyfunction]
fn after_fork_in_parent() {
    runtime::after_fork_in_parent();
}

#[pyfunction]
fn after_fork_in_child() {
    runtime::after_fork_in_child();
    leaving::begin_anew();
}
