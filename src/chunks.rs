//! A growing row of things, known by their index.

use std::ops::{Index, IndexMut};

/// Things in one allocation.
const CHUNK: usize = 256;

/// As a `Vec`, but what is there never moves. So it has no room for as much again, and a million
/// uploads do not stop everything while they are copied.
#[derive(Debug)]
pub(crate) struct Chunks<T>(Vec<Vec<T>>);

impl<T> Default for Chunks<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T> Chunks<T> {
    pub fn len(&self) -> usize {
        self.0.last().map_or(0, |last| (self.0.len() - 1) * CHUNK + last.len())
    }

    pub fn push(&mut self, thing: T) {
        match self.0.last_mut() {
            Some(last) if last.len() < CHUNK => last.push(thing),
            // The first one grows: most managers have a few.
            first => {
                let mut next = if first.is_none() { Vec::new() } else { Vec::with_capacity(CHUNK) };
                next.push(thing);
                self.0.push(next);
            }
        }
    }

    pub fn get(&self, index: usize) -> Option<&T> {
        self.0.get(index / CHUNK)?.get(index % CHUNK)
    }

    pub fn get_mut(&mut self, index: usize) -> Option<&mut T> {
        self.0.get_mut(index / CHUNK)?.get_mut(index % CHUNK)
    }

    pub fn iter(&self) -> impl Iterator<Item = &T> {
        self.0.iter().flatten()
    }
}

impl<T> Index<usize> for Chunks<T> {
    type Output = T;

    fn index(&self, index: usize) -> &T {
        &self.0[index / CHUNK][index % CHUNK]
    }
}

impl<T> IndexMut<usize> for Chunks<T> {
    fn index_mut(&mut self, index: usize) -> &mut T {
        &mut self.0[index / CHUNK][index % CHUNK]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_a_row() {
        let mut row = Chunks::default();
        assert_eq!((row.len(), row.get(0)), (0, None));
        for number in 0..=3 * CHUNK {
            assert_eq!(row.len(), number);
            row.push(number);
        }
        assert!(row.iter().copied().eq(0..=3 * CHUNK));
        row[CHUNK] = 7;
        *row.get_mut(CHUNK + 1).unwrap() = 8;
        assert_eq!((row[CHUNK - 1], row[CHUNK], row[CHUNK + 1]), (CHUNK - 1, 7, 8));
        assert_eq!((row.get(3 * CHUNK), row.get(3 * CHUNK + 1)), (Some(&(3 * CHUNK)), None));
    }
}
