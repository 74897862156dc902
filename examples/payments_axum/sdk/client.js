// The official SDK for Node against payments_axum: node client.js FAST_URL SLOW_URL LEDGER_URL
//
// FAST_URL and SLOW_URL are the proxies of two servers; the ledger is that of the first.

const assert = require('node:assert');
const Stripe = require('stripe');

const [fastUrl, slowUrl, ledgerUrl] = process.argv.slice(2);

function sdk(url) {
  const {hostname, port} = new URL(url);
  return new Stripe('sk_test_node', {host: hostname, port, protocol: 'http', maxNetworkRetries: 6});
}

function pay(url, order, amount = 700, idempotencyKey = undefined) {
  const params = {amount, currency: 'eur', metadata: {order}};
  return sdk(url).paymentIntents.create(params, idempotencyKey ? {idempotencyKey} : {});
}

async function booked(order) {
  const answer = await fetch(ledgerUrl, {signal: AbortSignal.timeout(60_000)});
  return (await answer.json()).filter((row) => row.metadata.order === order);
}

async function onlyBooked(order, payment) {
  assert.deepStrictEqual((await booked(order)).map((row) => row.id), [payment.id]);
}

async function parallel(url, order) {
  const [one, other] = await Promise.all([pay(url, order, 700, order), pay(url, order, 700, order)]);
  assert.strictEqual(one.id, other.id);
  return one;
}

async function check(name, test) {
  await test();
  console.log(`node, stripe ${Stripe.PACKAGE_VERSION}: ${name}`);
}

async function main() {
  await check('a payment', async () => {
    const payment = await pay(fastUrl, 'js-plain');
    assert.deepStrictEqual([payment.amount, payment.currency, payment.status], [700, 'eur', 'succeeded']);
    await onlyBooked('js-plain', payment);
  });
  await check('an answer that is dropped', async () => {
    const payment = await pay(fastUrl, 'js-drop');
    assert.strictEqual(payment.lastResponse.headers['idempotent-replayed'], 'true');
    await onlyBooked('js-drop', payment);
  });
  await check('an answer that is cut', async () => {
    let payment;
    try {
      payment = await pay(fastUrl, 'js-cut', 700, 'js-cut');
    } catch (error) {
      // An SDK that does not retry it: the application does, with the same key.
      assert(error instanceof Stripe.errors.StripeError, error);
      payment = await pay(fastUrl, 'js-cut', 700, 'js-cut');
    }
    await onlyBooked('js-cut', payment);
  });
  await check('a key that is used for another amount', async () => {
    await pay(fastUrl, 'js-reused', 700, 'js-reused');
    await assert.rejects(pay(fastUrl, 'js-reused', 900, 'js-reused'), Stripe.errors.StripeIdempotencyError);
    assert.deepStrictEqual((await booked('js-reused')).map((row) => row.amount), [700]);
  });
  await check('two at once', async () => onlyBooked('js-parallel', await parallel(fastUrl, 'js-parallel')));
  await check('a fault that is corrected under its key', async () => {
    const negative = pay(fastUrl, 'js-invalid', -1, 'js-invalid');
    await assert.rejects(negative, {type: 'StripeInvalidRequestError', param: 'amount'});
    await onlyBooked('js-invalid', await pay(fastUrl, 'js-invalid', 700, 'js-invalid'));
  });
  await check('409 while in progress', () => parallel(slowUrl, 'js-busy'));
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
