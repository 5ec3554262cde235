//! Buffers that share memory by lifetime.

/// Every buffer starts at a multiple of this many bytes.
pub const ALIGNMENT: usize = 256;

/// A buffer before it has a place.
struct Block {
    bytes: usize,
    from: usize,
    to: usize,
    offset: usize,
}

/// Collects buffers, then places them: largest first, each at the lowest offset where no living one lies.
#[derive(Default)]
pub struct Pool {
    blocks: Vec<Block>,
}

impl Pool {
    /// A buffer that lives from one time to another, both included; returns its number.
    pub fn add(&mut self, bytes: usize, from: usize, to: usize) -> usize {
        let bytes = bytes.max(1).next_multiple_of(ALIGNMENT);
        self.blocks.push(Block { bytes, from, to, offset: 0 });
        self.blocks.len() - 1
    }

    /// Places all of them and returns how many bytes they take together.
    pub fn place(&mut self) -> usize {
        let mut order: Vec<usize> = (0..self.blocks.len()).collect();
        order.sort_by_key(|&i| (std::cmp::Reverse(self.blocks[i].bytes), i));
        let mut placed: Vec<usize> = Vec::new();
        let mut total = 0;
        for i in order {
            let mut meeting: Vec<(usize, usize)> = (placed.iter().map(|&j| &self.blocks[j]))
                .filter(|b| b.from <= self.blocks[i].to && self.blocks[i].from <= b.to)
                .map(|b| (b.offset, b.offset + b.bytes))
                .collect();
            meeting.sort_unstable();
            let mut offset = 0;
            for (start, end) in meeting {
                if offset + self.blocks[i].bytes <= start {
                    break;
                }
                offset = offset.max(end);
            }
            self.blocks[i].offset = offset;
            total = total.max(offset + self.blocks[i].bytes);
            placed.push(i);
        }
        total
    }

    /// Where a placed buffer starts.
    pub fn offset(&self, block: usize) -> usize {
        self.blocks[block].offset
    }
}

/// Where a buffer will lie.
#[derive(Debug, Clone, Copy)]
pub enum Slot {
    /// At an offset that is known.
    Fixed(usize),
    /// The pool's block of this number.
    Pooled(usize),
    /// At an address: in another plan's memory.
    At(u64),
}

impl Slot {
    /// So many bytes further, in the same section.
    ///
    /// # Panics
    /// If it is the pool's.
    pub fn after(self, bytes: usize) -> Slot {
        match self {
            Slot::Fixed(offset) => Slot::Fixed(offset + bytes),
            Slot::At(address) => Slot::At(address + bytes as u64),
            Slot::Pooled(_) => unreachable!("sections are not pooled"),
        }
    }
}
