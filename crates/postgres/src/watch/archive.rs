//! What is wrong with an archive, as alerts.

use super::Alert;
use crate::wal::ArchiveHealth;

impl ArchiveHealth {
    /// What has to be done about the archive; nothing that only has to be known.
    pub fn alerts(&self) -> Vec<Alert> {
        let mut alerts = Vec::new();
        for one in &self.unusable {
            let id = one.backup.get(..8).unwrap_or(&one.backup);
            alerts.push(Alert::new(
                "unusable-snapshot",
                format!("snapshot {id} cannot be recovered: {} is missing", one.missing),
                "push the segment again if the server still has it in pg_wal, or copy it from \
                 another repository; else make a backup",
            ));
        }
        let last = self.windows.iter().max_by_key(|window| (window.timeline, window.to));
        match last {
            None => alerts.push(Alert::new(
                "nothing-recoverable",
                "no snapshot can be recovered with what the archive has",
                "make a backup, once archiving works",
            )),
            Some(window) => {
                if let Some(missing) = window.broken_by {
                    alerts.push(Alert::new(
                        "gap",
                        format!(
                            "{missing} is missing, although later segments are there: nothing \
                             recovers behind {}",
                            window.to
                        ),
                        "push the segment again if the server still has it in pg_wal, or copy it \
                         from another repository; else make a backup, which begins a window behind \
                         the gap",
                    ));
                }
            }
        }
        for finding in self.findings.iter().filter(|finding| finding.is_alarm()) {
            let hint = finding.hint().unwrap_or("look at it with `backstay wal status --read`");
            alerts.push(Alert::new(finding.kind(), finding.to_string(), hint));
        }
        alerts
    }
}
