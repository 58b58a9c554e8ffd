//! Whose request it is.

use parallax_runtime::DEFAULT_TENANT;
use parallax_security::Peer;

/// The tenant that a peer acts in: the one its certificate names.
#[must_use]
pub fn of(peer: &Peer) -> &str {
    peer.identity.as_ref().map_or(DEFAULT_TENANT, |identity| &identity.tenant)
}
