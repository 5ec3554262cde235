//! Token numbers in a row, in memory or in a file that is mapped into it, and cheap to cut.

use memmap2::Mmap;
use std::ops::Range;
use std::sync::Arc;

/// Where they are.
#[derive(Debug)]
enum Store {
    Memory(Vec<i32>),
    /// Little-endian, two or four bytes each, from `at` on.
    Mapped {
        map: Arc<Mmap>,
        at: usize,
        wide: bool,
    },
}

/// A range of token numbers. Clones share them.
#[derive(Debug, Clone)]
pub struct Tokens {
    store: Arc<Store>,
    range: Range<usize>,
}

impl From<Vec<i32>> for Tokens {
    fn from(tokens: Vec<i32>) -> Tokens {
        let range = 0..tokens.len();
        Tokens { store: Arc::new(Store::Memory(tokens)), range }
    }
}

impl Tokens {
    /// `count` tokens in a mapped file, from byte `at` on; `wide`: four bytes each, else two.
    ///
    /// # Panics
    /// If the file ends before them.
    pub fn mapped(map: Arc<Mmap>, at: usize, wide: bool, count: usize) -> Tokens {
        assert!(at + count * if wide { 4 } else { 2 } <= map.len(), "the file ends before its tokens");
        Tokens { store: Arc::new(Store::Mapped { map, at, wide }), range: 0..count }
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.range.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.range.is_empty()
    }

    /// A part of them.
    ///
    /// # Panics
    /// If it reaches past the end.
    pub fn slice(&self, range: Range<usize>) -> Tokens {
        assert!(range.start <= range.end && range.end <= self.len(), "a part lies within the whole");
        let start = self.range.start;
        Tokens { store: self.store.clone(), range: start + range.start..start + range.end }
    }

    /// The i-th.
    ///
    /// # Panics
    /// If there are not so many.
    pub fn get(&self, i: usize) -> i32 {
        assert!(i < self.len(), "token {i} of {}", self.len());
        self.store.get(self.range.start + i)
    }

    /// All of them in order.
    pub fn iter(&self) -> impl Iterator<Item = i32> + '_ {
        self.range.clone().map(|i| self.store.get(i))
    }
}

impl Store {
    fn get(&self, i: usize) -> i32 {
        match self {
            Store::Memory(tokens) => tokens[i],
            Store::Mapped { map, at, wide: false } => {
                let at = at + 2 * i;
                u16::from_le_bytes([map[at], map[at + 1]]) as i32
            }
            Store::Mapped { map, at, wide: true } => {
                let at = at + 4 * i;
                u32::from_le_bytes([map[at], map[at + 1], map[at + 2], map[at + 3]]) as i32
            }
        }
    }
}
