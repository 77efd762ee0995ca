//! What waits in a lane. Nearly always that is nothing or one thing, which needs no allocation.

use std::collections::VecDeque;

/// A queue that is as small as one thing, and gives back what a burst took when that is over.
#[derive(Debug, Default)]
pub(crate) enum Queue<T> {
    #[default]
    Empty,
    One(T),
    /// At least one.
    Many(VecDeque<T>),
}

impl<T> Queue<T> {
    pub fn len(&self) -> usize {
        match self {
            Self::Empty => 0,
            Self::One(_) => 1,
            Self::Many(many) => many.len(),
        }
    }

    pub fn is_empty(&self) -> bool {
        matches!(self, Self::Empty)
    }

    #[inline]
    pub fn push_back(&mut self, thing: T) {
        match self {
            Self::Empty => *self = Self::One(thing),
            Self::One(_) => self.many().push_back(thing),
            Self::Many(many) => many.push_back(thing),
        }
    }

    pub fn push_front(&mut self, thing: T) {
        match self {
            Self::Empty => *self = Self::One(thing),
            Self::One(_) => self.many().push_front(thing),
            Self::Many(many) => many.push_front(thing),
        }
    }

    #[inline]
    pub fn pop_front(&mut self) -> Option<T> {
        if let Self::Many(many) = self {
            let thing = many.pop_front();
            if many.is_empty() {
                *self = Self::Empty;
            }
            return thing;
        }
        match std::mem::take(self) {
            Self::One(thing) => Some(thing),
            Self::Empty | Self::Many(_) => None,
        }
    }

    pub fn remove(&mut self, at: usize) -> Option<T> {
        if at == 0 {
            return self.pop_front();
        }
        let Self::Many(many) = self else { return None };
        many.remove(at) // not the last: that one is at 0
    }

    /// Front to back.
    pub fn iter(&self) -> impl Iterator<Item = &T> {
        let (one, many) = match self {
            Self::Empty => (None, None),
            Self::One(one) => (Some(one), None),
            Self::Many(many) => (None, Some(many.iter())),
        };
        one.into_iter().chain(many.into_iter().flatten())
    }

    /// Back to front, to be changed.
    pub fn iter_mut_from_back(&mut self) -> impl Iterator<Item = &mut T> {
        let (one, many) = match self {
            Self::Empty => (None, None),
            Self::One(one) => (Some(one), None),
            Self::Many(many) => (None, Some(many.iter_mut().rev())),
        };
        one.into_iter().chain(many.into_iter().flatten())
    }

    /// Everything; it is empty then.
    pub fn take(&mut self) -> VecDeque<T> {
        match std::mem::take(self) {
            Self::Empty => VecDeque::new(),
            Self::One(one) => VecDeque::from([one]),
            Self::Many(many) => many,
        }
    }

    fn many(&mut self) -> &mut VecDeque<T> {
        *self = Self::Many(self.take());
        match self {
            Self::Many(many) => many,
            Self::Empty | Self::One(_) => unreachable!("it was made so one line above"),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Debug)]
    enum Step {
        PushBack,
        PushFront,
        Pop,
        Remove(usize),
        Take,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => Just(Step::PushBack),
            2 => Just(Step::PushFront),
            4 => Just(Step::Pop),
            2 => (0..4usize).prop_map(Step::Remove),
            1 => Just(Step::Take),
        ]
    }

    proptest! {
        #[test]
        fn it_is_a_queue(steps in proptest::collection::vec(step(), 0..60)) {
            let (mut queue, mut model) = (Queue::default(), VecDeque::new());
            for (number, step) in steps.into_iter().enumerate() {
                match step {
                    Step::PushBack => { queue.push_back(number); model.push_back(number); }
                    Step::PushFront => { queue.push_front(number); model.push_front(number); }
                    Step::Pop => prop_assert_eq!(queue.pop_front(), model.pop_front()),
                    Step::Remove(at) => prop_assert_eq!(queue.remove(at), model.remove(at)),
                    Step::Take => prop_assert_eq!(queue.take(), std::mem::take(&mut model)),
                }
                prop_assert!(queue.iter().eq(&model));
                prop_assert!(queue.iter_mut_from_back().map(|thing| *thing).eq(model.iter().rev().copied()));
                prop_assert_eq!((queue.len(), queue.is_empty()), (model.len(), model.is_empty()));
            }
        }
    }
}
