//! `parallax config`.

use super::print;
use crate::{
    args::{Args, Config},
    exit::Result,
    settings::Settings,
};

pub(super) fn run(args: &Args, command: &Config) -> Result {
    let Config::Show = command;
    let loaded = Settings::load(&args.place, &[])?;
    for (key, (value, origin)) in &loaded.origins {
        print(format_args!("{key} = {value}  # {origin}"));
    }
    Ok(())
}
