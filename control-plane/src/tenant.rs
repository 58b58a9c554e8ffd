//! Whose request it is.

use parallax_runtime::DEFAULT_TENANT;
use parallax_security::Peer;

/// The tenant that a peer acts in: the one its certificate names.
#[must_use]
pub fn of(peer: &Peer) -> &str {
    peer.identity.as_ref().map_or(DEFAULT_TENANT, |identity| &identity.tenant)
}

/// Who a peer is, for records.
#[must_use]
pub fn who(peer: &Peer) -> String {
    peer.identity.as_ref().map_or_else(|| "a plaintext peer".to_owned(), ToString::to_string)
}
