//! Every module that the validation cases launch, architecture by architecture: what the kernel gate compiles.

use super::cuda::Arch;
use super::cuda::gate::GateItem;
use super::recorder::Recorder;
use super::{Gpu, Module};
use crate::device::Device;
use crate::error::Result;
use crate::ops::Entry;
use crate::validate::run_case;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Runs the launch code of every case on a recorder that claims to be each architecture.
///
/// # Errors
/// If a case does not record.
pub fn launched(entries: &[&Entry], archs: &[Arch]) -> Result<Vec<GateItem>> {
    let mut items: BTreeMap<Module, GateItem> = BTreeMap::new();
    for &arch in archs {
        let recorder = Arc::new(Recorder::new(arch.sm, arch.shared_per_block()));
        let device: Arc<dyn Device> = Arc::new(Gpu::new("recorder", recorder.clone()));
        for case in entries.iter().flat_map(|e| (e.cases)()) {
            run_case(&case, device.clone())?;
        }
        for (module, entry, shared) in recorder.launches() {
            let item = items.entry(module.clone()).or_insert_with(|| GateItem::new(module));
            *item = item.clone().only(arch).shared(&entry, shared);
        }
    }
    Ok(items.into_values().collect())
}
