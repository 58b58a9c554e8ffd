//! What makes two calls the same question.

use std::collections::BTreeSet;

use parallax_proto::confidence::AgentRequest;
use prost::{
    Message,
    encoding::{DecodeContext, decode_key, skip_field},
};
use prost_types::{Struct, Value, value::Kind};
use sha2::{Digest as _, Sha256};

use crate::{ask::Target, directory::Tenant};

/// The last field of `AgentRequest` that is known here.
const LAST_FIELD: u32 = 6;

/// What is asked, and which version would answer.
///
/// An answer is good for the version that gave it. That of a call to an agent is what the agent registered as
/// its version; that of a call for a capability is the set of the versions of all who have it, so that whenever
/// one of them is replaced by another version, everyone is asked again. Nobody has none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    pub(crate) question: Question,
    pub(crate) version: Option<[u8; 32]>,
}

/// SHA-256 of tenant, agent or capability, and what of the request changes the answer.
pub(crate) type Question = [u8; 32];

impl Key {
    /// `message` is an `AgentRequest`: none for one that cannot be read.
    ///
    /// Its `task_id`, `timeout_ms` and `pattern_name` do not count. Data counts as JSON: whatever the order of
    /// its keys, and 1 is 1.0. Fields of later versions of the contract count as the bytes that came.
    pub(crate) fn of(
        tenant: (&str, Option<&Tenant>),
        target: Target<'_>,
        mut message: &[u8],
    ) -> Option<Self> {
        let request = AgentRequest::decode(message).ok()?;
        let (tenant, agents) = tenant;
        let mut digest = Digest(Sha256::new());
        digest.text(tenant);
        digest.target(target);
        digest.text(&request.task_description);
        digest.data(request.data.as_ref());
        let context: BTreeSet<_> = request.context.iter().collect();
        digest.count(context.len());
        context.into_iter().for_each(|(key, value)| {
            digest.text(key);
            digest.text(value);
        });
        while !message.is_empty() {
            let field = message;
            let (number, wire_type) = decode_key(&mut message).ok()?;
            skip_field(wire_type, number, &mut message, DecodeContext::default()).ok()?;
            if number > LAST_FIELD {
                digest.bytes(&field[..field.len() - message.len()]);
            }
        }
        Some(Self {
            question: digest.0.finalize().into(),
            version: agents.and_then(|agents| version(agents, target)),
        })
    }
}

fn version(agents: &Tenant, target: Target<'_>) -> Option<[u8; 32]> {
    let able = match target {
        Target::Agent(id) => std::slice::from_ref(agents.agents.get(id)?),
        Target::Capability(capability) => &agents.capabilities.get(capability)?.members[..],
    };
    let versions: BTreeSet<_> = able.iter().map(|entry| &*entry.agent.metadata.version).collect();
    let mut digest = Digest(Sha256::new());
    versions.into_iter().for_each(|version| digest.text(version));
    Some(digest.0.finalize().into())
}

/// What goes in cannot be cut differently: everything has its kind and length before it.
struct Digest(Sha256);

impl Digest {
    fn bytes(&mut self, bytes: &[u8]) {
        self.count(bytes.len());
        self.0.update(bytes);
    }

    fn text(&mut self, text: &str) {
        self.bytes(text.as_bytes());
    }

    fn count(&mut self, count: usize) {
        self.0.update((count as u64).to_be_bytes());
    }

    fn kind(&mut self, kind: u8) {
        self.0.update([kind]);
    }

    fn target(&mut self, target: Target<'_>) {
        let (kind, name) = match target {
            Target::Agent(id) => (b'a', id),
            Target::Capability(capability) => (b'c', capability),
        };
        self.kind(kind);
        self.text(name);
    }

    fn data(&mut self, data: Option<&Struct>) {
        match data {
            None => self.kind(b'-'),
            Some(data) => self.object(data),
        }
    }

    fn object(&mut self, object: &Struct) {
        self.kind(b'{');
        self.count(object.fields.len());
        // In the order of their keys, as the type keeps them.
        for (key, value) in &object.fields {
            self.text(key);
            self.value(value);
        }
    }

    /// As deep as the message could be decoded.
    fn value(&mut self, value: &Value) {
        match &value.kind {
            None | Some(Kind::NullValue(_)) => self.kind(b'0'),
            Some(Kind::BoolValue(value)) => self.kind(if *value { b't' } else { b'f' }),
            Some(Kind::NumberValue(number)) => {
                // There is one NaN, and one zero.
                let number = if number.is_nan() { f64::NAN } else { number + 0.0 };
                self.kind(b'n');
                self.0.update(number.to_be_bytes());
            }
            Some(Kind::StringValue(text)) => {
                self.kind(b's');
                self.text(text);
            }
            Some(Kind::ListValue(list)) => {
                self.kind(b'[');
                self.count(list.values.len());
                list.values.iter().for_each(|value| self.value(value));
            }
            Some(Kind::StructValue(object)) => self.object(object),
        }
    }
}
