// The decisions of ui/script/caption_saves.js, without a document: run by test_script.py.

import assert from 'node:assert/strict';
import { createRequire } from 'node:module';
import { beforeEach, describe, test } from 'node:test';

createRequire(import.meta.url)('../../../ui/script/caption_saves.js'); // a plain script: it sets globalThis.impasto
const { CaptionSaves } = globalThis.impasto;

let away;
let stored;
let sent;
let shown;
let later;
let saves;

beforeEach(() => {
  away = false;
  stored = {};
  sent = [];
  shown = [];
  later = [];
  saves = new CaptionSaves(
    async (place, text) => {
      sent.push(place);
      if (away) return { state: 'unreachable' };
      if (text === 'too long') return { state: 'rejected' };
      stored[place] = text;
      return { state: 'saved' };
    },
    (place, text, result) => shown.push([place, result.state]),
    (retry) => later.push(retry),
  );
});

const leave = (place, text) => {
  saves.edit(place, text);
  return saves.save(place, text);
};
const wait = () => Promise.all(later.splice(0).map((retry) => retry()));

describe('a caption whose save got no response', () => {
  test('is saved when the server is back, and the page shows both', async () => {
    away = true;
    await leave('ink/owl.png', 'an owl');
    await wait();
    assert.deepEqual(stored, {});
    away = false;
    await wait();
    assert.deepEqual(stored, { 'ink/owl.png': 'an owl' });
    assert.deepEqual(shown.map(([, state]) => state), ['unreachable', 'unreachable', 'saved']);
    assert.equal(saves.unsaved.size, 0);
    assert.equal(later.length, 0);
  });

  test('waits with all others: one request at a time while the server is away', async () => {
    away = true;
    for (const place of ['a', 'b', 'c']) await leave(place, place);
    sent = [];
    await wait();
    assert.deepEqual(sent, ['a']);
    assert.equal(later.length, 1);
    away = false;
    await wait();
    assert.deepEqual(stored, { a: 'a', b: 'b', c: 'c' });
  });

  test('is saved with the text that was typed last', async () => {
    away = true;
    await leave('a', 'old');
    away = false;
    saves.edit('a', 'new');
    await wait();
    assert.deepEqual(stored, { a: 'new' });
  });

  test('is left alone while it is being edited', async () => {
    away = true;
    await leave('a', 'half a');
    away = false;
    saves.editedPlace = () => 'a';
    await wait();
    assert.deepEqual(stored, {});
    saves.editedPlace = () => null;
    await wait();
    assert.deepEqual(stored, { a: 'half a' });
  });

  test('is taken over by the page that Gradio reloads', async () => {
    saves.takeOver([
      ['a', 'one\ntwo'],
      ['b', 'three'],
    ]);
    await wait();
    assert.deepEqual(stored, { a: 'one\ntwo', b: 'three' });
  });
});

describe('a caption that the studio rejects', () => {
  test('is not sent again, and stays in its field', async () => {
    await leave('a', 'too long');
    assert.equal(later.length, 0);
    assert.equal(saves.unsaved.get('a'), 'too long');
  });

  test('is not sent again after the server was away', async () => {
    away = true;
    await leave('a', 'too long');
    away = false;
    await wait();
    assert.equal(later.length, 0);
    assert.equal(saves.unsaved.get('a'), 'too long');
  });
});

test('a field is due once for each text', async () => {
  assert.equal(saves.isDue('a', 'x'), false);
  saves.edit('a', 'x');
  assert.equal(saves.isDue('a', 'x'), true);
  const saving = saves.save('a', 'x');
  assert.equal(saves.isDue('a', 'x'), false);
  await saving;
  assert.equal(saves.isDue('a', 'x'), false);
});

test('text that was typed during a save stays unsaved', async () => {
  saves.edit('a', 'x');
  const saving = saves.save('a', 'x');
  saves.edit('a', 'xy');
  await saving;
  assert.equal(saves.unsaved.get('a'), 'xy');
});
