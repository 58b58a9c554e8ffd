//! What the benches ask the kernel about processes.

use std::time::Duration;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// User and system time of this process so far.
pub fn cpu() -> Result<Duration> {
    cpu_of("self")
}

/// The same of any process.
pub fn cpu_of(pid: &str) -> Result<Duration> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let fields: Vec<&str> = stat.rsplit(')').next().ok_or("no fields")?.split_whitespace().collect();
    let ticks: u64 = fields[11].parse::<u64>()? + fields[12].parse::<u64>()?;
    Ok(Duration::from_millis(ticks * 1000 / rustix::param::clock_ticks_per_second()))
}

/// Bytes of memory that are resident.
pub fn resident() -> Result<u64> {
    resident_of("self")
}

/// The same of any process.
pub fn resident_of(pid: &str) -> Result<u64> {
    let statm = std::fs::read_to_string(format!("/proc/{pid}/statm"))?;
    let pages: u64 = statm.split(' ').nth(1).ok_or("no field")?.parse()?;
    Ok(pages * rustix::param::page_size() as u64)
}
