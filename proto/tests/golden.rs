//! Pins the contract: the fields, numbers and types of each message, the bytes of one instance with every
//! field set, and the value of each enum. `PARALLAX_BLESS=1` rewrites the file, for additions only: a line
//! that changes is a broken client.

use std::fmt::Write;

use prost_reflect::{
    Cardinality, DescriptorPool, DynamicMessage, FieldDescriptor, Kind, MapKey, MessageDescriptor, Value,
    prost::Message,
};

/// A value that differs for each field, so that two exchanged fields show.
fn scalar(field: &FieldDescriptor, depth: usize) -> Value {
    let n = field.number();
    match field.kind() {
        Kind::String => Value::String(field.name().to_owned()),
        Kind::Double => Value::F64(f64::from(n) / 8.0),
        Kind::Int32 => Value::I32(i32::try_from(n).expect("field numbers are small")),
        Kind::Int64 => Value::I64(i64::from(n)),
        Kind::Uint32 => Value::U32(n),
        Kind::Uint64 => Value::U64(u64::from(n)),
        Kind::Bool => Value::Bool(true),
        Kind::Enum(e) => Value::EnumNumber(e.values().last().expect("an enum has values").number()),
        Kind::Message(m) => Value::Message(populated(&m, depth + 1)),
        other => panic!("{}: the contract has no field of kind {other:?}", field.full_name()),
    }
}

fn populated(message: &MessageDescriptor, depth: usize) -> DynamicMessage {
    let mut out = DynamicMessage::new(message.clone());
    // google.protobuf.Struct contains itself.
    if depth > 4 {
        return out;
    }
    for field in message.fields() {
        // Of a oneof the last field set stands; tests below walk each message by itself.
        let value = if field.is_map() {
            let entry = field.kind().as_message().expect("a map field has an entry message").clone();
            let value = scalar(&entry.map_entry_value_field(), depth);
            Value::Map([(MapKey::String(field.name().to_owned()), value)].into())
        } else if field.cardinality() == Cardinality::Repeated {
            Value::List(vec![scalar(&field, depth)])
        } else {
            scalar(&field, depth)
        };
        out.set_field(&field, value);
    }
    out
}

fn describe(message: &MessageDescriptor, out: &mut String) {
    writeln!(out, "message {}", message.full_name()).expect("writing to a string");
    for field in message.fields() {
        let oneof = field.containing_oneof().map(|o| format!(" oneof {}", o.name())).unwrap_or_default();
        let cardinality = format!("{:?}", field.cardinality()).to_lowercase();
        writeln!(out, "  {}={} {:?} {cardinality}{oneof}", field.name(), field.number(), field.kind())
            .expect("writing to a string");
    }
    let hex: String = populated(message, 0).encode_to_vec().iter().map(|b| format!("{b:02x}")).collect();
    writeln!(out, "  bytes {hex}").expect("writing to a string");
}

#[test]
fn the_contract_does_not_drift() {
    let pool = DescriptorPool::decode(parallax_proto::FILE_DESCRIPTOR_SET).expect("our own descriptors");
    let mut text = String::new();
    for file in pool.files().filter(|f| f.package_name().starts_with("parallax.")) {
        for service in file.services() {
            for method in service.methods() {
                let (input, output) = (method.input(), method.output());
                let stream = |on| if on { "stream " } else { "" };
                writeln!(
                    text,
                    "rpc {}({}{}) -> {}{}",
                    method.full_name(),
                    stream(method.is_client_streaming()),
                    input.full_name(),
                    stream(method.is_server_streaming()),
                    output.full_name()
                )
                .expect("writing to a string");
            }
        }
    }
    let ours = |name: &str| name.starts_with("parallax.");
    for message in pool.all_messages().filter(|m| ours(m.full_name()) && !m.is_map_entry()) {
        describe(&message, &mut text);
    }
    for e in pool.all_enums().filter(|e| ours(e.full_name())) {
        let values: Vec<_> = e.values().map(|v| format!("{}={}", v.name(), v.number())).collect();
        writeln!(text, "enum {} {}", e.full_name(), values.join(" ")).expect("writing to a string");
    }
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden.txt");
    if std::env::var_os("PARALLAX_BLESS").is_some() {
        std::fs::write(path, &text).expect("the golden file is writable");
    }
    let golden = std::fs::read_to_string(path).expect("tests/golden.txt");
    for (line, (now, then)) in text.lines().zip(golden.lines()).enumerate() {
        assert_eq!(now, then, "tests/golden.txt:{}: the wire contract has changed", line + 1);
    }
    assert_eq!(text.lines().count(), golden.lines().count(), "messages were added or removed");
}
