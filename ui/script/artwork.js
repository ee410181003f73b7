// The Artwork tab: cards are removed and restored, their repeats set, their crop moved like a slider, and
// their mask painted.

const CROP_SAVE_MS = 500; // after the last move
const FOCUS_MS = 8000; // in which Gradio replaces the cards
const MASK_COLOUR = [154, 52, 18];
const MASK_OPACITY = 0.75;
const MASK_STYLE = `rgb(${MASK_COLOUR.join(' ')} / ${100 * MASK_OPACITY}%)`;

const reportChange = () => document.querySelector('#artwork-changed')?.click();

async function send(method, address, body) {
  const response = await fetch(address, { method, body });
  const result = await response.json();
  if (!response.ok) throw new Error(result.message);
  return result;
}

function showMessage(card, text) {
  const line = card?.querySelector('.message');
  if (line) line.textContent = text;
}

// `fetch` throws a TypeError where the server can't be reached; the list of cards holds the sentence for
// that.
function messageOf(error) {
  if (!(error instanceof TypeError)) return error.message;
  return document.querySelector('[data-failed]')?.dataset.failed ?? '';
}

async function change(card, method, address, body) {
  try {
    showMessage(card, (await send(method, address, body)).message);
    return true;
  } catch (error) {
    showMessage(card, messageOf(error));
    return false;
  }
}

// Gradio replaces the cards after a change. Focuses the element that `find` returns once it exists, so that
// work by keyboard continues at the same place.
function focusAfterRefresh(root, find) {
  const place = document.querySelector(root);
  if (!place) return;
  const observer = new MutationObserver(() => {
    const next = find();
    if (!next) return;
    next.focus({ preventScroll: true });
    observer.disconnect();
  });
  observer.observe(place, { childList: true, subtree: true });
  setTimeout(() => observer.disconnect(), FOCUS_MS);
}

document.addEventListener('click', async (event) => {
  const button = event.target.closest?.('#cards button.remove, #removed button.restore, #cards button.mask');
  if (!button) return;
  const card = button.closest('li');
  if (button.matches('.mask')) return openMask(card, button);
  const address = (button.matches('.remove') ? './remove/' : './restore/') + card.dataset.place;
  button.disabled = true;
  if (!(await change(card, 'POST', address))) {
    button.disabled = false;
    return;
  }
  const next = card.nextElementSibling ?? card.previousElementSibling;
  const place = next?.dataset.place;
  focusAfterRefresh(
    button.matches('.remove') ? '#cards' : '#removed',
    () => place && document.querySelector(`li[data-place="${CSS.escape(place)}"] button.${button.className}`),
  );
  card.remove();
  reportChange();
});

document.addEventListener('change', async (event) => {
  const field = event.target;
  if (!field.matches?.('#cards input.repeats')) return;
  const card = field.closest('li');
  const value = Math.min(100, Math.max(1, Math.round(Number(field.value)) || 1));
  field.value = value;
  const body = JSON.stringify({ repeats: value });
  if (await change(card, 'PUT', `./choice/${card.dataset.place}`, body)) reportChange();
});

// The crop is a share of the spare pixels along one axis: 0 is left or top, 1 is right or bottom.
const cropTimers = new WeakMap();

function moveCrop(crop, share) {
  share = Math.min(1, Math.max(0, share));
  const [, , width, height] = crop.getAttribute('viewBox').split(' ').map(Number);
  const box = crop.dataset.box.split(' ').map(Number);
  if (crop.dataset.axis === 'x') {
    box[0] = (width - box[2]) * share;
  } else {
    box[1] = (height - box[3]) * share;
  }
  crop.dataset.box = box.join(' ');
  crop.dataset.share = share;
  crop.setAttribute('aria-valuenow', Math.round(100 * share));
  const frame = crop.querySelector('.kept');
  frame.setAttribute('x', box[0]);
  frame.setAttribute('y', box[1]);
  crop
    .querySelector('.cut')
    .setAttribute('d', `M0 0H${width}V${height}H0ZM${box[0]} ${box[1]}h${box[2]}v${box[3]}h${-box[2]}Z`);
  clearTimeout(cropTimers.get(crop));
  cropTimers.set(
    crop,
    setTimeout(() => saveCrop(crop), CROP_SAVE_MS),
  );
}

function saveCrop(crop) {
  const share = Math.round(1000 * Number(crop.dataset.share)) / 1000;
  const body = JSON.stringify({ crop: crop.dataset.axis === 'x' ? [share, 0.5] : [0.5, share] });
  return change(crop.closest('li'), 'PUT', `./choice/${crop.dataset.place}`, body);
}

document.addEventListener('keydown', (event) => {
  const crop = event.target;
  if (!crop.matches?.('svg.crop')) return;
  const step = event.shiftKey ? 0.1 : 0.02;
  const share = Number(crop.dataset.share);
  const target = {
    ArrowLeft: share - step,
    ArrowUp: share - step,
    ArrowRight: share + step,
    ArrowDown: share + step,
    PageUp: share - 0.1,
    PageDown: share + 0.1,
    Home: 0,
    End: 1,
  }[event.key];
  if (target === undefined) return;
  event.preventDefault();
  moveCrop(crop, target);
});

document.addEventListener('pointerdown', (event) => {
  const crop = event.target.closest?.('svg.crop');
  if (!crop) return;
  event.preventDefault();
  crop.focus();
  crop.setPointerCapture(event.pointerId);
  const isHorizontal = crop.dataset.axis === 'x';
  const position = (move) => (isHorizontal ? move.clientX : move.clientY);
  const start = position(event);
  const share = Number(crop.dataset.share);
  const [, , width, height] = crop.getAttribute('viewBox').split(' ').map(Number);
  const box = crop.dataset.box.split(' ').map(Number);
  const shown = crop.getBoundingClientRect();
  const spare = isHorizontal
    ? ((width - box[2]) * shown.width) / width
    : ((height - box[3]) * shown.height) / height;
  const drag = (move) => moveCrop(crop, share + (position(move) - start) / Math.max(1, spare));
  const end = () => {
    crop.removeEventListener('pointermove', drag);
    crop.removeEventListener('pointerup', end);
    crop.removeEventListener('pointercancel', end);
  };
  crop.addEventListener('pointermove', drag);
  crop.addEventListener('pointerup', end);
  crop.addEventListener('pointercancel', end);
});

// The mask brush. On `mask` the learned area is white and the hidden area black; the canvas over the picture
// shows the hidden area in colour.
let mask = null;
let masked = null; // {place, button} of the picture whose mask is open

async function openMask(card, button) {
  const dialog = document.querySelector('#mask-dialog');
  const picture = dialog.querySelector('img');
  const canvas = dialog.querySelector('canvas');
  dialog.querySelector('#mask-title').textContent = dialog.dataset.title.replace('{name}', card.dataset.name);
  showMessage(dialog, '');
  picture.alt = card.dataset.name;
  picture.src = './large/' + card.dataset.place;
  masked = { place: card.dataset.place, button };
  try {
    await picture.decode();
  } catch {
    showMessage(card, card.closest('[data-failed]').dataset.failed);
    return;
  }
  canvas.width = picture.naturalWidth;
  canvas.height = picture.naturalHeight;
  mask = new OffscreenCanvas(canvas.width, canvas.height);
  fill('white');
  if (button.dataset.mask !== '0') {
    const saved = new Image();
    saved.src = `./mask/${card.dataset.place}?v=${button.dataset.mask}`;
    try {
      await saved.decode();
      mask.getContext('2d').drawImage(saved, 0, 0, canvas.width, canvas.height);
    } catch {
      // The mask has been removed meanwhile: painting starts with an empty one.
    }
  }
  showMask();
  dialog.showModal();
  dialog.querySelector('.mask-brush').focus();
}

function fill(colour) {
  const pen = mask.getContext('2d', { willReadFrequently: true });
  pen.fillStyle = colour;
  pen.fillRect(0, 0, mask.width, mask.height);
}

function showMask() {
  const pen = document.querySelector('#mask-dialog canvas').getContext('2d');
  const values = mask
    .getContext('2d', { willReadFrequently: true })
    .getImageData(0, 0, mask.width, mask.height);
  for (let at = 0; at < values.data.length; at += 4) {
    const hidden = 255 - values.data[at];
    [values.data[at], values.data[at + 1], values.data[at + 2]] = MASK_COLOUR;
    values.data[at + 3] = hidden * MASK_OPACITY;
  }
  pen.putImageData(values, 0, 0);
}

function paintMask(event, canvas, from) {
  const shown = canvas.getBoundingClientRect();
  const scale = canvas.width / shown.width;
  const dialog = canvas.closest('dialog');
  const brush = Number(dialog.querySelector('.mask-brush').value) / 100;
  const diameter = brush * Math.max(canvas.width, canvas.height) + 4;
  const hides = dialog.querySelector('[name=mask-way]:checked').value === 'hide';
  const at = [(event.clientX - shown.left) * scale, (event.clientY - shown.top) * scale];
  const strokes = [
    { pen: mask.getContext('2d'), colour: hides ? 'black' : 'white', operation: 'source-over' },
    // 'destination-out' erases with an opaque colour.
    {
      pen: canvas.getContext('2d'),
      colour: hides ? MASK_STYLE : 'black',
      operation: hides ? 'source-over' : 'destination-out',
    },
  ];
  for (const { pen, colour, operation } of strokes) {
    pen.globalCompositeOperation = operation;
    pen.strokeStyle = colour;
    pen.lineCap = 'round';
    pen.lineWidth = diameter;
    pen.beginPath();
    pen.moveTo(...(from ?? at));
    pen.lineTo(...at);
    pen.stroke();
    pen.globalCompositeOperation = 'source-over';
  }
  return at;
}

document.addEventListener('pointerdown', (event) => {
  const canvas = event.target;
  if (!canvas.matches?.('#mask-dialog canvas') || !mask) return;
  event.preventDefault();
  canvas.setPointerCapture(event.pointerId);
  let from = paintMask(event, canvas);
  const paint = (move) => {
    for (const point of move.getCoalescedEvents?.() ?? [move]) from = paintMask(point, canvas, from);
  };
  canvas.addEventListener('pointermove', paint);
  const end = () => {
    canvas.removeEventListener('pointermove', paint);
    showMask();
  };
  canvas.addEventListener('pointerup', end, { once: true });
  canvas.addEventListener('pointercancel', end, { once: true });
});

function fillRectangle(dialog) {
  const [left, top, width, height] = ['left', 'top', 'width', 'height'].map(
    (side) => Number(dialog.querySelector(`.mask-${side}`).value) / 100,
  );
  const hides = dialog.querySelector('[name=mask-way]:checked').value === 'hide';
  const pen = mask.getContext('2d');
  pen.fillStyle = hides ? 'black' : 'white';
  pen.fillRect(left * mask.width, top * mask.height, width * mask.width, height * mask.height);
}

function invertMask() {
  const pen = mask.getContext('2d');
  pen.globalCompositeOperation = 'difference';
  fill('white');
  pen.globalCompositeOperation = 'source-over';
}

const MASK_ACTIONS = {
  all: () => fill('white'),
  none: () => fill('black'),
  invert: invertMask,
  box: fillRectangle,
};

document.addEventListener('click', (event) => {
  const button = event.target.closest?.('#mask-dialog [data-do]');
  if (!button) return;
  const dialog = button.closest('dialog');
  const action = button.dataset.do;
  if (action === 'cancel') {
    dialog.close();
    masked.button.focus();
  } else if (action === 'save') {
    saveMask(dialog);
  } else {
    MASK_ACTIONS[action](dialog);
    showMask();
  }
});

async function saveMask(dialog) {
  try {
    await send('PUT', `./mask/${masked.place}`, await mask.convertToBlob({ type: 'image/png' }));
  } catch (error) {
    showMessage(dialog, messageOf(error));
    return;
  }
  dialog.close();
  const { place } = masked;
  focusAfterRefresh('#cards', () =>
    document.querySelector(`li[data-place="${CSS.escape(place)}"] button.mask`),
  );
  reportChange();
}
