//! The result as a page.

use crate::report::Report;

/// One file, nothing from outside.
pub(crate) fn page(report: &Report) -> String {
    format!("<!doctype html><title>{}</title>", report.command)
}
