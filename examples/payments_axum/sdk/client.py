"""The official SDK for Python against payments_axum: python3 client.py FAST_URL SLOW_URL LEDGER_URL

FAST_URL and SLOW_URL are the proxies of two servers; the ledger is that of the first.
"""

import json
import sys
import threading
import urllib.request

import stripe

fast_url, slow_url, ledger_url = sys.argv[1:]


def sdk(url):
    return stripe.StripeClient("sk_test_python", base_addresses={"api": url}, max_network_retries=6)


def pay(url, order, amount=700, key=None):
    params = {"amount": amount, "currency": "eur", "metadata": {"order": order}}
    options = {"idempotency_key": key} if key else {}
    return sdk(url).v1.payment_intents.create(params, options)


def booked(order):
    with urllib.request.urlopen(ledger_url, timeout=60) as answer:
        return [row for row in json.load(answer) if row["metadata"].get("order") == order]


def parallel(url, order, key):
    payments = []
    threads = [threading.Thread(target=lambda: payments.append(pay(url, order, key=key))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(payments) == 2 and payments[0].id == payments[1].id, payments
    return payments[0]


def check(name, test):
    test()
    print(f"python, stripe {stripe.VERSION}: {name}")


def plain():
    payment = pay(fast_url, "py-plain")
    assert (payment.amount, payment.currency, payment.status) == (700, "eur", "succeeded"), payment
    assert [row["id"] for row in booked("py-plain")] == [payment.id]


def dropped():
    payment = pay(fast_url, "py-drop")
    assert [row["id"] for row in booked("py-drop")] == [payment.id]
    assert payment.last_response.headers["idempotent-replayed"] == "true"


def cut():
    try:
        pay(fast_url, "py-cut", key="py-cut")
        raise AssertionError("the answer was cut")
    except stripe.APIConnectionError:
        pass  # the SDK does not retry it: the application does, with the same key
    payment = pay(fast_url, "py-cut", key="py-cut")
    assert [row["id"] for row in booked("py-cut")] == [payment.id]


def reused():
    pay(fast_url, "py-reused", key="py-reused")
    try:
        pay(fast_url, "py-reused", amount=900, key="py-reused")
        raise AssertionError("the key was used for another amount")
    except stripe.IdempotencyError as error:
        assert error.http_status == 400, error
    assert [row["amount"] for row in booked("py-reused")] == [700]


def at_once():
    payment = parallel(fast_url, "py-parallel", "py-parallel")
    assert [row["id"] for row in booked("py-parallel")] == [payment.id]


def invalid():
    try:
        pay(fast_url, "py-invalid", amount=-1, key="py-invalid")
        raise AssertionError("the amount is negative")
    except stripe.InvalidRequestError as error:
        assert error.param == "amount", error
    payment = pay(fast_url, "py-invalid", key="py-invalid")
    assert [row["id"] for row in booked("py-invalid")] == [payment.id]


check("a payment", plain)
check("an answer that is dropped", dropped)
check("an answer that is cut", cut)
check("a key that is used for another amount", reused)
check("two at once", at_once)
check("a fault that is corrected under its key", invalid)
check("409 while in progress", lambda: parallel(slow_url, "py-busy", "py-busy"))
