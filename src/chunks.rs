//! A growing row of things, known by their index.

use std::ops::{Index, IndexMut};

/// Things in one allocation. As an array, so that an index is checked once.
const CHUNK: usize = 256;

/// As a `Vec`, but what is there never moves. So it has no room for as much again, and a million
/// uploads do not stop everything while they are copied.
#[derive(Debug)]
pub(crate) struct Chunks<T> {
    chunks: Vec<Box<[T; CHUNK]>>,
    len: usize,
}

impl<T> Default for Chunks<T> {
    fn default() -> Self {
        Self { chunks: Vec::new(), len: 0 }
    }
}

impl<T: Default> Chunks<T> {
    pub fn push(&mut self, thing: T) {
        if self.len == self.chunks.len() * CHUNK {
            let chunk: Box<[T]> = std::iter::repeat_with(T::default).take(CHUNK).collect();
            self.chunks.extend(<Box<[T; CHUNK]>>::try_from(chunk));
        }
        let index = self.len;
        self[index] = thing;
        self.len += 1;
    }
}

impl<T> Chunks<T> {
    pub fn len(&self) -> usize {
        self.len
    }

    /// What has an index; perhaps a default that stands where nothing has been put yet.
    pub fn get(&self, index: usize) -> Option<&T> {
        self.chunks.get(index / CHUNK).map(|chunk| &chunk[index % CHUNK])
    }

    /// As [`Chunks::get`], to be changed.
    pub fn get_mut(&mut self, index: usize) -> Option<&mut T> {
        self.chunks.get_mut(index / CHUNK).map(|chunk| &mut chunk[index % CHUNK])
    }

    pub fn iter(&self) -> impl Iterator<Item = &T> {
        self.chunks.iter().flat_map(|chunk| chunk.iter()).take(self.len)
    }
}

impl<T> Index<usize> for Chunks<T> {
    type Output = T;

    fn index(&self, index: usize) -> &T {
        &self.chunks[index / CHUNK][index % CHUNK]
    }
}

impl<T> IndexMut<usize> for Chunks<T> {
    fn index_mut(&mut self, index: usize) -> &mut T {
        &mut self.chunks[index / CHUNK][index % CHUNK]
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
        assert_eq!((row.get(3 * CHUNK), row.get(3 * CHUNK + 1)), (Some(&(3 * CHUNK)), Some(&0)));
        assert_eq!(row.get(4 * CHUNK), None);
    }
}
