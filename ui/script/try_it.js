// The Try it tab: the strength slider swaps images that exist already, two images are laid over each other,
// and a strength or a checkpoint is chosen.

const WORK_POLL_MS = 700;
const MOST_IMAGES = 400;
const images = new Map(); // address -> decoded image in memory, so that the slider shows it without a request

const listOf = (element, name) => JSON.parse(element.dataset[name] || '[]');

function preload(strip) {
  if (strip.dataset.preloaded) return;
  strip.dataset.preloaded = 'yes';
  if (images.size > MOST_IMAGES) images.clear();
  for (const picture of strip.querySelectorAll('img[data-sources]')) {
    for (const address of listOf(picture, 'sources')) {
      if (images.has(address)) continue;
      const image = new Image();
      image.src = address;
      images.set(address, image);
    }
  }
}

const inSight = new IntersectionObserver((entries) => {
  for (const entry of entries.filter((each) => each.isIntersecting)) {
    preload(entry.target);
    inSight.unobserve(entry.target);
  }
});

new MutationObserver(() => {
  for (const strip of document.querySelectorAll('.tryout:not([data-watched])')) {
    strip.dataset.watched = 'yes';
    inSight.observe(strip);
  }
}).observe(document.documentElement, { childList: true, subtree: true });

function reveal(comparison, percent) {
  const slider = comparison.querySelector('.reveal');
  slider.value = percent;
  slider.setAttribute('aria-valuetext', `${Math.round(percent)}%`);
  comparison.style.setProperty('--reveal', `${percent}%`);
}

document.addEventListener('input', (event) => {
  const slider = event.target;
  if (slider.matches?.('.compare .reveal')) {
    reveal(slider.closest('.compare'), Number(slider.value));
  } else if (slider.matches?.('.tryout .strength input')) {
    const strip = slider.closest('.tryout');
    const label = listOf(slider, 'labels')[slider.value];
    slider.setAttribute('aria-valuetext', label);
    strip.querySelector('output').textContent = label;
    for (const picture of strip.querySelectorAll('img[data-sources]')) {
      picture.src = listOf(picture, 'sources')[slider.value];
    }
  }
});

document.addEventListener('change', (event) => {
  if (!event.target.matches?.('.compare select')) return;
  const comparison = event.target.closest('.compare');
  const prompt = comparison.querySelector('.which');
  const urls = listOf(comparison, 'urls')[prompt ? Number(prompt.value) : 0];
  const prefix = prompt ? `${prompt.options[prompt.selectedIndex].text}, ` : '';
  for (const [side, layer] of [
    ['before', '.under'],
    ['after', '.over'],
  ]) {
    const select = comparison.querySelector(`select.${side}`);
    const picture = comparison.querySelector(layer);
    picture.src = urls[Number(select.value)];
    picture.alt = prefix + select.options[select.selectedIndex].text;
  }
});

function dragDivider(event) {
  const pair = event.target.closest?.('.compare .pair');
  if (!pair || (event.type === 'pointermove' && event.buttons !== 1)) return;
  const box = pair.getBoundingClientRect();
  const percent = (100 * (event.clientX - box.left)) / box.width;
  reveal(pair.closest('.compare'), Math.max(0, Math.min(100, percent)));
}

document.addEventListener('pointerdown', dragDivider);
document.addEventListener('pointermove', dragDivider);

// Polls the export of a checkpoint, which takes a while, and returns its last response.
async function finished(work) {
  for (;;) {
    await new Promise((wake) => setTimeout(wake, WORK_POLL_MS));
    const progress = await (await fetch(`./making/${work}`)).json();
    if (progress.state !== 'working') return progress;
  }
}

// Sets the preferred strength, or a checkpoint and its strength as the LoRA file.
document.addEventListener('click', async (event) => {
  const button = event.target.closest?.('button.prefer, button.choose');
  if (!button) return;
  const choosesCheckpoint = button.matches('.choose');
  const box = button.closest('.tryout') ?? button.closest('.scroll').parentElement;
  const message = box.querySelector('.message');
  const choice = choosesCheckpoint
    ? { strength: Number(button.dataset.strength), step: Number(button.dataset.step) }
    : { strength: listOf(box, 'strengths')[box.querySelector('.strength input').value] };
  try {
    const response = await fetch(`./prefer/${button.dataset.key}`, {
      method: 'PUT',
      body: JSON.stringify(choice),
    });
    let result = await response.json();
    message.textContent = result.message;
    if (result.work) {
      result = await finished(result.work);
      message.textContent = result.message;
    }
    if (response.ok && choosesCheckpoint && (result.state ?? 'finished') === 'finished') {
      for (const other of box.querySelectorAll('button.choose')) {
        other.setAttribute('aria-pressed', String(other === button));
      }
    }
  } catch {
    message.textContent = message.dataset.unreachable;
  }
});
