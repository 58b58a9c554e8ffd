use super::*;

/// Enums whose variants are label values.
macro_rules! label_values {
    ($(#[$doc:meta])* $name:ident { $($(#[$about:meta])* $variant:ident => $text:literal,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum $name { $($(#[$about])* $variant,)* }

        impl $name {
            /// Every variant.
            pub const ALL: [Self; [$($text),*].len()] = [$(Self::$variant),*];

            /// The label's value.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text,)* }
            }
        }

        impl EncodeLabelValue for $name {
            fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> std::fmt::Result {
                encoder.write_str(self.as_str())
            }
        }
    };
}

label_values! {
    /// How a run ended.
    RunStatus {
        Completed => "completed",
        Failed => "failed",
        Cancelled => "cancelled",
    }
}

label_values! {
    /// How a proxied call ended.
    ProxyOutcome {
        /// The agent answered.
        Ok => "ok",
        /// The agent answered with an error.
        Failed => "failed",
        /// The deadline passed first.
        Timeout => "timeout",
        /// No connection, or it broke.
        Unreachable => "unreachable",
        /// The caller went away.
        Cancelled => "cancelled",
        /// Not sent, by the breaker or for load.
        Rejected => "rejected",
    }
}

label_values! {
    /// What the cache was to a call that opted for it.
    CacheOutcome {
        /// Answered by what was held.
        Hit => "hit",
        /// Nothing was held: the agent was asked.
        Miss => "miss",
        /// Answered by the call of another who asked the same.
        Shared => "shared",
        /// The agent was asked, whatever was held.
        Refresh => "refresh",
        /// It was not to be used.
        Bypass => "bypass",
        /// Calls of this kind, or as large, cannot use it.
        Uncacheable => "uncacheable",
    }
}

label_values! {
    /// What answered a call whose agent did not.
    Fallback {
        Cached => "cached",
        OtherAgent => "other_agent",
        Degraded => "degraded",
        Default => "default",
    }
}

/// A breaker's state as the gauge shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BreakerState {
    Closed = 0,
    HalfOpen = 1,
    Open = 2,
    Throttled = 3,
}

label_values! {
    /// How much a call matters.
    CallPriority {
        Critical => "critical",
        Default => "default",
        Sheddable => "sheddable",
    }
}

label_values! {
    /// What a call was refused for.
    LoadBound {
        /// The node has as many calls in flight as it takes of the call's priority.
        Node => "node",
        /// The tenant has its share of them.
        Tenant => "tenant",
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct TenantLabel {
    pub(super) tenant: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct PatternLabel {
    pattern: String,
}

impl PatternLabel {
    pub(super) fn new(pattern: &str) -> Self {
        Self { pattern: pattern.to_owned() }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct FinishedLabels {
    pub(super) pattern: String,
    pub(super) status: RunStatus,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct EffectLabels {
    pub(super) kind: &'static str,
    pub(super) outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct HttpLabels {
    pub(super) method: &'static str,
    pub(super) route: String,
    pub(super) status: u16,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct GrpcLabels {
    pub(super) method: &'static str,
    pub(super) code: &'static str,
}

/// Agents of two tenants may have the same name.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct AgentLabels {
    tenant: String,
    agent: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct ProxyLabels {
    tenant: String,
    agent: String,
    outcome: ProxyOutcome,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct ShedLabels {
    pub(super) priority: CallPriority,
    pub(super) bound: LoadBound,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct CacheLabel {
    pub(super) outcome: CacheOutcome,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct FallbackLabel {
    pub(super) served_by: Fallback,
}

impl AgentLabels {
    pub(super) fn new(tenant: &str, agent: &str) -> Self {
        Self { tenant: tenant.to_owned(), agent: agent.to_owned() }
    }

    pub(super) fn with(&self, outcome: ProxyOutcome) -> ProxyLabels {
        ProxyLabels { tenant: self.tenant.clone(), agent: self.agent.clone(), outcome }
    }
}

/// The name of a gRPC status code, as in the gRPC specification.
pub(super) fn grpc_code(code: i32) -> &'static str {
    const NAMES: [&str; 17] = [
        "OK",
        "CANCELLED",
        "UNKNOWN",
        "INVALID_ARGUMENT",
        "DEADLINE_EXCEEDED",
        "NOT_FOUND",
        "ALREADY_EXISTS",
        "PERMISSION_DENIED",
        "RESOURCE_EXHAUSTED",
        "FAILED_PRECONDITION",
        "ABORTED",
        "OUT_OF_RANGE",
        "UNIMPLEMENTED",
        "INTERNAL",
        "UNAVAILABLE",
        "DATA_LOSS",
        "UNAUTHENTICATED",
    ];
    usize::try_from(code).ok().and_then(|code| NAMES.get(code)).copied().unwrap_or("UNKNOWN")
}
