//! The metrics registry of a process.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::{Registry, Unit};

/// The one registry of a process, passed to every part that counts. Cheap to clone.
///
/// Each crate builds its own struct of metrics with [`register`](Self::register), once in a
/// process, and hands clones of the struct to its parts: registering twice would show two families
/// of one name.
#[derive(Debug, Clone)]
pub struct Metrics {
    registry: Arc<Mutex<Registry>>,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// A registry with what every process shows: start time, resident memory, open files.
    pub fn new() -> Self {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(ProcessCollector {
            started: SystemTime::now(),
        }));
        Self {
            registry: Arc::new(Mutex::new(registry)),
        }
    }

    /// Adds metrics; `add` gets the registry and gives back its struct of metrics.
    pub fn register<T>(&self, add: impl FnOnce(&mut Registry) -> T) -> T {
        // A panic while registering leaves a registry that is still whole.
        add(&mut self.registry.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// All metrics in the OpenMetrics text format.
    pub fn encode(&self) -> Result<String, std::fmt::Error> {
        let mut text = String::new();
        encode(
            &mut text,
            &self.registry.lock().unwrap_or_else(PoisonError::into_inner),
        )?;
        Ok(text)
    }
}

#[derive(Debug)]
struct ProcessCollector {
    started: SystemTime,
}

impl Collector for ProcessCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let mut gauge = |name: &str, help: &str, unit: Option<&Unit>, value: f64| {
            let gauge = ConstGauge::new(value);
            let encoder =
                encoder.encode_descriptor(name, help, unit, EncodeMetric::metric_type(&gauge))?;
            EncodeMetric::encode(&gauge, encoder)
        };
        let started = self
            .started
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default();
        gauge(
            "process_start_time",
            "Start of the process since the Unix epoch",
            Some(&Unit::Seconds),
            started.as_secs_f64(),
        )?;
        if let Some(bytes) = resident_bytes() {
            gauge(
                "process_resident_memory",
                "Resident memory",
                Some(&Unit::Bytes),
                bytes as f64,
            )?;
        }
        if let Ok(files) = std::fs::read_dir("/proc/self/fd") {
            gauge(
                "process_open_fds",
                "Open file descriptors",
                None,
                files.count() as f64,
            )?;
        }
        Ok(())
    }
}

/// Resident memory of this process; `None` where there is no /proc.
pub fn resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmRSS:"))?;
    let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kib * 1024)
}

#[cfg(test)]
mod tests {
    use prometheus_client::metrics::counter::Counter;

    use super::*;

    #[test]
    fn what_is_counted_is_shown_with_what_the_process_uses() {
        let metrics = Metrics::new();
        let served = metrics.register(|registry| {
            let counter: Counter = Counter::default();
            registry.register("served", "Requests served", counter.clone());
            counter
        });
        served.inc();
        let text = metrics.encode().unwrap();
        assert!(text.contains("served_total 1\n"), "{text}");
        assert!(text.contains("process_start_time_seconds "), "{text}");
        assert!(text.contains("process_resident_memory_bytes "), "{text}");
        assert!(text.ends_with("# EOF\n"), "{text}");
    }
}
