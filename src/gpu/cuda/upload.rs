//! Copies from the host through page-locked memory. An asynchronous copy from ordinary memory may still read it
//! after the call (where the GPU reaches the host's pages itself), and the caller's data may be gone by then.

use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys::{CUevent, CUevent_flags, CUstream};

/// Bytes of a slot: more than a training step's tokens, lengths and scalars.
const SLOT: usize = 1 << 20;
/// Copies that may be under way before the next one waits.
const SLOTS: usize = 4;

struct Slot {
    memory: *mut u8,
    /// Recorded behind the copy that last read the slot.
    done: CUevent,
}

/// A ring of page-locked slots. Dropped with its context current.
#[derive(Default)]
pub(super) struct Staging {
    slots: Vec<Slot>,
    next: usize,
}

// SAFETY: page-locked memory and events belong to the context, not to a thread.
unsafe impl Send for Staging {}

impl Staging {
    /// Copies in stream order; `data` may be dropped at return.
    ///
    /// # Safety
    /// The context of all earlier calls is current, `stream` is its, and the range is live device memory.
    pub unsafe fn upload(&mut self, address: u64, data: &[u8], stream: CUstream) -> Result<(), DriverError> {
        if data.len() > SLOT {
            // SAFETY: the data lives until the copy is over, which is waited for.
            return unsafe {
                result::memcpy_htod_async(address, data, stream)?;
                result::stream::synchronize(stream)
            };
        }
        if self.slots.len() < SLOTS {
            let done = result::event::create(CUevent_flags::CU_EVENT_DISABLE_TIMING)?;
            // SAFETY: freed in drop.
            match unsafe { result::malloc_host(SLOT, 0) } {
                Ok(memory) => self.slots.push(Slot { memory: memory.cast(), done }),
                Err(error) => {
                    // SAFETY: created above, used nowhere.
                    let _ = unsafe { result::event::destroy(done) };
                    return Err(error);
                }
            }
            self.next = self.slots.len() - 1;
        }
        let slot = &self.slots[self.next];
        self.next = (self.next + 1) % SLOTS;
        // SAFETY: after the wait no copy reads the slot, so that it can be written; it holds SLOT bytes; the next
        // writer waits for the event that is recorded behind the copy. An event never recorded counts as done.
        unsafe {
            result::event::synchronize(slot.done)?;
            let staged = std::slice::from_raw_parts_mut(slot.memory, data.len());
            staged.copy_from_slice(data);
            result::memcpy_htod_async(address, staged, stream)?;
            result::event::record(slot.done, stream)
        }
    }

    /// Frees the slots, after the stream has been waited for.
    ///
    /// # Safety
    /// The context is current and no copy is under way.
    pub unsafe fn free(&mut self) {
        for slot in self.slots.drain(..) {
            // SAFETY: allocated in `upload`, freed once, no longer read.
            unsafe {
                let _ = result::event::destroy(slot.done);
                let _ = result::free_host(slot.memory.cast());
            }
        }
    }
}
