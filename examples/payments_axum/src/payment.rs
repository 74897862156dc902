//! A payment, and how it is read from a request.

use std::collections::BTreeMap;

use axum::http::HeaderMap;
use axum::http::header::CONTENT_TYPE;
use serde_json::Value;

/// The largest amount, as at Stripe: eight digits.
const MAX_AMOUNT: i64 = 99_999_999;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Payment {
    /// In the currency's smallest unit.
    pub(crate) amount: i64,
    pub(crate) currency: String,
    pub(crate) metadata: BTreeMap<String, String>,
}

/// A fault of the request, with the parameter that is wrong.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The body is of an unknown type.
    MediaType,
    Parameter(&'static str, &'static str),
}

impl Payment {
    /// Reads a payment from a form, `amount=7&currency=eur&metadata[order]=o1`, or from JSON,
    /// `{"amount": 7, "currency": "eur", "metadata": {"order": "o1"}}`.
    pub(crate) fn parse(headers: &HeaderMap, body: &[u8]) -> Result<Payment, Fault> {
        let content_type =
            headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let essence = content_type.split(';').next().unwrap_or_default().trim();
        if essence.eq_ignore_ascii_case("application/x-www-form-urlencoded") {
            form(body)
        } else if essence.eq_ignore_ascii_case("application/json") {
            json(body)
        } else {
            Err(Fault::MediaType)
        }
    }

    fn checked(
        amount: Option<i64>,
        currency: Option<String>,
        metadata: BTreeMap<String, String>,
    ) -> Result<Payment, Fault> {
        let amount = amount.filter(|amount| (1..=MAX_AMOUNT).contains(amount)).ok_or(Fault::Parameter(
            "amount",
            "amount must be a whole number from 1 to 99999999, in the currency's smallest unit",
        ))?;
        let currency = currency.map(|currency| currency.to_ascii_lowercase());
        let is_code = |code: &String| code.len() == 3 && code.bytes().all(|byte| byte.is_ascii_lowercase());
        let currency = currency.filter(is_code).ok_or(Fault::Parameter(
            "currency",
            "currency must be an ISO code of three letters, such as eur",
        ))?;
        Ok(Payment { amount, currency, metadata })
    }
}

/// Other parameters than these are accepted and ignored, since Stripe has many.
fn form(body: &[u8]) -> Result<Payment, Fault> {
    let (mut amount, mut currency, mut metadata) = (None, None, BTreeMap::new());
    for (name, value) in form_urlencoded::parse(body) {
        let order = name.strip_prefix("metadata[").and_then(|name| name.strip_suffix(']'));
        let repeated = match (&*name, order) {
            ("amount", _) => amount.replace(value.into_owned()).is_some(),
            ("currency", _) => currency.replace(value.into_owned()).is_some(),
            (_, Some(order)) => metadata.insert(order.to_owned(), value.into_owned()).is_some(),
            (_, None) => false,
        };
        if repeated {
            return Err(Fault::Parameter("body", "a parameter appears twice"));
        }
    }
    // Digits only: no sign, no space.
    let digits = amount.filter(|amount| amount.bytes().all(|byte| byte.is_ascii_digit()));
    Payment::checked(digits.and_then(|digits| digits.parse().ok()), currency, metadata)
}

fn json(body: &[u8]) -> Result<Payment, Fault> {
    let wrong = Fault::Parameter("body", "the body must be a JSON object");
    let Ok(Value::Object(object)) = serde_json::from_slice(body) else { return Err(wrong) };
    let texts = || Fault::Parameter("metadata", "metadata must be an object whose values are strings");
    let metadata = match object.get("metadata") {
        None | Some(Value::Null) => BTreeMap::new(),
        Some(Value::Object(metadata)) => {
            let text = |(name, value): (&String, &Value)| Some((name.clone(), value.as_str()?.to_owned()));
            metadata.iter().map(text).collect::<Option<_>>().ok_or_else(texts)?
        }
        Some(_) => return Err(texts()),
    };
    let currency = object.get("currency").and_then(Value::as_str).map(str::to_owned);
    Payment::checked(object.get("amount").and_then(Value::as_i64), currency, metadata)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(content_type: &str, body: &str) -> Result<Payment, Fault> {
        let headers = [(CONTENT_TYPE, content_type.parse().unwrap())].into_iter().collect();
        Payment::parse(&headers, body.as_bytes())
    }

    fn form(body: &str) -> Result<Payment, Fault> {
        parse("application/x-www-form-urlencoded", body)
    }

    fn json(body: &str) -> Result<Payment, Fault> {
        parse("application/json; charset=utf-8", body)
    }

    #[test]
    fn a_payment_reads_the_same_from_a_form_and_from_json() {
        let metadata = BTreeMap::from([("order".to_owned(), "o 1".to_owned())]);
        let expected = Payment { amount: 700, currency: "eur".to_owned(), metadata };
        let sent = "amount=700&currency=EUR&metadata[order]=o+1&automatic_payment_methods[enabled]=true";
        assert_eq!(form(sent).as_ref(), Ok(&expected));
        assert_eq!(json(r#"{"amount": 700, "currency": "eur", "metadata": {"order": "o 1"}}"#), Ok(expected));
    }

    #[test]
    fn a_faulty_payment_is_refused() {
        for amount in ["", "0", "-1", "+1", " 1", "1.5", "1e2", "100000000", "99999999999999999999", "seven"]
        {
            let fault = form(&format!("amount={}&currency=eur", amount.replace('+', "%2B"))).unwrap_err();
            assert!(matches!(fault, Fault::Parameter("amount", _)), "{amount}: {fault:?}");
        }
        for amount in ["null", "0", "-1", "1.5", "\"7\"", "[1]"] {
            let fault = json(&format!(r#"{{"amount": {amount}, "currency": "eur"}}"#)).unwrap_err();
            assert!(matches!(fault, Fault::Parameter("amount", _)), "{amount}: {fault:?}");
        }
        for currency in ["", "eu", "euro", "€", "e1r"] {
            let fault = form(&format!("amount=1&currency={currency}")).unwrap_err();
            assert!(matches!(fault, Fault::Parameter("currency", _)), "{currency}: {fault:?}");
        }
        for body in ["", "[]", "{", "\u{0}"] {
            assert!(matches!(json(body), Err(Fault::Parameter("body", _))), "{body}");
        }
        let twice = form("amount=1&amount=2&currency=eur");
        assert!(matches!(twice, Err(Fault::Parameter("body", _))), "{twice:?}");
        let nested = json(r#"{"amount": 1, "currency": "eur", "metadata": {"order": 7}}"#);
        assert!(matches!(nested, Err(Fault::Parameter("metadata", _))), "{nested:?}");
        assert_eq!(parse("text/plain", "amount=1&currency=eur"), Err(Fault::MediaType));
    }
}
