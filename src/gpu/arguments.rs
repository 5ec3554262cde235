//! Kernel parameters as the kernels see them.

use crate::op::Place;
use bytemuck::{Pod, Zeroable};

/// A plain value that a kernel takes as a parameter: the Rust type lies in memory as the kernel's type does.
pub trait Argument {
    /// Its bytes.
    fn bytes(&self) -> &[u8];
}

impl<T: Pod> Argument for T {
    fn bytes(&self) -> &[u8] {
        bytemuck::bytes_of(self)
    }
}

/// `View` of `kernels/prelude.cuh`: a (batch, head, row, column) tensor with unit column stride.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct View {
    /// Address of the first element; 0 where the kernel takes none.
    pub data: u64,
    /// Elements from one batch to the next.
    pub batch: i64,
    /// Elements from one head to the next.
    pub head: i64,
    /// Elements from one row to the next.
    pub row: i64,
}

impl View {
    /// A null view, for an absent tensor.
    pub const NONE: View = View { data: 0, batch: 0, head: 0, row: 0 };

    /// A (B,H,T,D) tensor.
    pub fn of(place: &Place) -> View {
        let s = &place.strides;
        View { data: place.address, batch: s[0] as i64, head: s[1] as i64, row: s[2] as i64 }
    }

    /// A (B,H,T,D) tensor, or [`View::NONE`].
    pub fn of_option(place: Option<&Place>) -> View {
        place.map_or(View::NONE, View::of)
    }
}
