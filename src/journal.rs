//! Log lines on their way to Python's `logging`.
//!
//! The core logs from threads that must not attach to Python, so lines wait here until a thread that
//! is attached comes by: the event loop's reader, or the next call into the library.

use std::collections::VecDeque;

use parking_lot::Mutex;

/// Lines kept while nobody comes by; older ones make room and are counted.
const KEPT: usize = 256;

/// How serious a line is; the numbers of Python's `logging`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Level {
    /// `logging.INFO`
    Info = 20,
    /// `logging.WARNING`
    Warning = 30,
    /// `logging.ERROR`
    Error = 40,
}

/// One line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// How serious it is.
    pub level: Level,
    /// The text, ready to be shown: secrets are masked already.
    pub text: String,
}

/// Lines that wait.
#[derive(Debug, Default)]
pub struct Journal(Mutex<(VecDeque<Line>, usize)>);

impl Journal {
    /// Adds a line.
    pub fn add(&self, level: Level, text: String) {
        let mut inner = self.0.lock();
        if inner.0.len() == KEPT {
            inner.0.pop_front();
            inner.1 += 1;
        }
        inner.0.push_back(Line { level, text });
    }

    /// Takes the lines, oldest first.
    pub fn drain(&self) -> Vec<Line> {
        let mut inner = self.0.lock();
        let missed = std::mem::take(&mut inner.1);
        let mut lines: Vec<Line> = inner.0.drain(..).collect();
        if missed > 0 {
            let text = format!("{missed} older log lines of fanwire were dropped");
            lines.insert(0, Line { level: Level::Warning, text });
        }
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_lines_make_room_and_are_counted() {
        let journal = Journal::default();
        for n in 0..KEPT + 3 {
            journal.add(Level::Info, n.to_string());
        }
        let lines = journal.drain();
        assert!(lines[0].text.starts_with("3 older"));
        assert_eq!(lines[1].text, "3");
        assert_eq!(lines.len(), KEPT + 1);
        assert!(journal.drain().is_empty());
    }
}
