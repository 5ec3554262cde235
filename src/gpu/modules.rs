//! Every module that the validation cases launch, architecture by architecture: what the kernel gate compiles.

use super::cuda::Arch;
use super::cuda::gate::GateItem;
use super::recorder::Recorder;
use super::{Gpu, Module};
use crate::case::Case;
use crate::error::Result;
use crate::ops::Entry;
use crate::precision::Precision;
use crate::validate::{lacks, run_case};
use rayon::prelude::*;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Runs the launch code of every case, in every precision that it has, on a recorder that claims to be each architecture.
///
/// # Errors
/// If a case does not record.
pub fn launched(entries: &[&Entry], archs: &[Arch]) -> Result<Vec<GateItem>> {
    launched_in(&Precision::GPU, entries, archs)
}

/// The same in some precisions.
///
/// # Errors
/// If a case does not record.
pub fn launched_in(precisions: &[Precision], entries: &[&Entry], archs: &[Arch]) -> Result<Vec<GateItem>> {
    let cases: Vec<Case> = entries.iter().flat_map(|e| (e.cases)()).collect();
    launched_by_cases(precisions, &cases, archs)
}

/// The same for these cases.
///
/// # Errors
/// If one does not record.
pub fn launched_by_cases(precisions: &[Precision], cases: &[Case], archs: &[Arch]) -> Result<Vec<GateItem>> {
    let mut wanted = Vec::new();
    for case in cases {
        for &precision in precisions {
            if lacks(case, precision)?.is_none() {
                wanted.extend(archs.iter().map(|&arch| (case.clone(), precision, arch)));
            }
        }
    }
    // Launch code takes no time, but data are drawn for it.
    let found: Result<Vec<_>> = (wanted.into_par_iter())
        .map(|(case, precision, arch)| Ok((arch, launched_by(&case, precision, arch)?)))
        .collect();
    let mut items: BTreeMap<Module, GateItem> = BTreeMap::new();
    for (arch, item) in found?.into_iter().flat_map(|(arch, items)| items.into_iter().map(move |item| (arch, item))) {
        let known = items.entry(item.module.clone()).or_insert_with(|| GateItem::new(item.module.clone()));
        *known = item.dynamic_shared.iter().fold(known.clone().only(arch), |all, (e, &s)| all.shared(e, s));
        *known = item.threads.iter().fold(known.clone(), |all, (e, &n)| all.threads(e, n));
    }
    Ok(items.into_values().collect())
}

/// The same for one case, one precision and one architecture.
///
/// # Errors
/// If the case does not record.
pub fn launched_by(case: &Case, precision: Precision, arch: Arch) -> Result<Vec<GateItem>> {
    let recorder = Arc::new(Recorder::new(arch.sm, arch.shared_per_block()));
    run_case(case, Arc::new(Gpu::storing(precision, "recorder", recorder.clone())))?;
    let mut items: BTreeMap<Module, GateItem> = BTreeMap::new();
    for (module, entry, threads, shared) in recorder.launches() {
        let item = items.entry(module.clone()).or_insert_with(|| GateItem::new(module));
        *item = item.clone().shared(&entry, shared).threads(&entry, threads);
    }
    Ok(items.into_values().collect())
}
