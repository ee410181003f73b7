// Keeps the page up to date: poll -> mark -> stale -> trigger. docs/engineers/page.md describes the whole
// machinery.

// Sections of ui/updates.py that several tabs depend on, and the tab whose HTML names the mark that it was
// rendered from.
const SHARED_SECTIONS = { made: 'library', arrived: 'captions' };
const POLL_MS = 1500;
const POLL_HIDDEN_MS = 10_000;
const POLL_SOON_MS = 300;
const POLL_TIMEOUT_MS = 30_000;
const FULL_REFRESH_POLLS = 10;

const newValue = () => String(Math.random());

// Decides what must be refreshed, without touching the document, so that tests run it in node.
class RefreshState {
  // shownTab(): name of the tab in sight. renderedMark(section, project): the mark that the HTML of a shared
  // section was rendered from, null where nothing of this project has been rendered.
  constructor(shownTab, renderedMark) {
    this.shownTab = shownTab;
    this.renderedMark = renderedMark;
    this.marks = {}; // section -> the last mark that the server sent
    this.stale = new Set(); // sections whose mark changed since their last refresh
    this.pending = new Map(); // trigger -> its hidden tab, which refreshes when it is shown
    this.polls = 0;
  }

  // Whether a mark is another one than before. A shared section that is in sight is compared with its own
  // HTML, so that a refresh that failed or got lost is repeated. Out of sight, each new mark counts once.
  isNew(section, mark, project) {
    if (section in SHARED_SECTIONS) {
      const rendered = this.renderedMark(section, project);
      if (rendered !== null && this.shownTab() === SHARED_SECTIONS[section]) {
        this.marks[section] = mark;
        return rendered !== mark;
      }
      // A tab that has rendered nothing of this project does so when it is shown.
      if (rendered === null && section !== 'made') return false;
    }
    if (this.marks[section] === mark) return false;
    this.marks[section] = mark;
    return true;
  }

  // Takes the marks of one poll and returns the sections to refresh now: the tab in sight and the shared
  // sections.
  update(marks, project) {
    for (const [section, mark] of Object.entries(marks)) {
      if (this.isNew(section, mark, project)) this.stale.add(section);
    }
    this.polls += 1;
    // From time to time the tab in sight is refreshed anyway: its last refresh may have got lost.
    if (this.polls % FULL_REFRESH_POLLS === 0) this.stale.add(this.shownTab());
    return [this.shownTab(), ...Object.keys(SHARED_SECTIONS)].filter((section) => this.stale.has(section));
  }

  // The next value of a trigger: a new one, which Gradio answers with a refresh, or the present one while its
  // tab is hidden.
  trigger(tab, name, value) {
    if (tab === this.shownTab()) return newValue();
    this.pending.set(name, tab);
    return value;
  }

  // The next value of a trigger whose tab has been shown: a new one if its refresh is pending.
  flush(name, value) {
    return this.pending.delete(name) ? newValue() : value;
  }

  hasPending(tab) {
    return [...this.pending.values()].includes(tab);
  }
}

const tabOf = (button) => /^tab-(.+)-button$/.exec(button?.id ?? '')?.[1];
const shownTab = () => tabOf(document.querySelector('[role=tab][aria-selected=true]'));

const RENDERED = {
  made: () => document.querySelector('#shelf [data-made]'),
  arrived: (project) => document.querySelector(`#caption-list [data-project="${CSS.escape(project)}"]`),
};

function renderedMark(section, project) {
  const element = RENDERED[section](project);
  return element ? (element.dataset[section] ?? '') : null;
}

const state = new RefreshState(shownTab, renderedMark);
let timer = 0;

globalThis.impasto = {
  ...globalThis.impasto,
  RefreshState,
  // Called by the events that ui/tabs/__init__.py makes.
  trigger: (tab, name, value) => state.trigger(tab, name, value),
  flush: (name, value) => state.flush(name, value),
};

// Presses the hidden button of a section; its Gradio events fetch the new HTML.
function refresh(section) {
  const button = document.getElementById(`refresh-${section}`);
  if (!button) return;
  state.stale.delete(section);
  button.click();
}

function flushShown() {
  const tab = shownTab();
  if (state.hasPending(tab)) document.getElementById(`shown-${tab}`)?.click();
}

function onShown(tab) {
  impasto.remember('tab', tab);
  if (state.stale.has(tab)) refresh(tab);
  flushShown();
}

// Fills the status in the head. Its live region stays the same element: a screen reader reads out what
// changes in it.
function showStatus(html) {
  const live = document.querySelector('#status [role=status]');
  const place = live?.parentElement;
  if (!place || place.dataset.shown === html) return;
  place.dataset.shown = html;
  const template = document.createElement('template');
  template.innerHTML = html;
  const next = template.content.querySelector('[role=status]');
  if (live.innerHTML !== next.innerHTML) live.innerHTML = next.innerHTML;
  while (live.nextSibling) live.nextSibling.remove();
  next.remove();
  live.after(template.content);
}

async function poll() {
  clearTimeout(timer);
  flushShown();
  const field = document.querySelector('#project input');
  const project = field?.value ?? '';
  try {
    // The timeout keeps a response that never comes from ending the polls.
    const response = await fetch(`./pulse?project=${encodeURIComponent(project)}`, {
      cache: 'no-store',
      signal: AbortSignal.timeout(POLL_TIMEOUT_MS),
    });
    if (response.status === 401) location.reload(); // shows the login
    const update = response.ok && (await response.json());
    if (update && field?.isConnected && field.value === project) {
      showStatus(update.status);
      impasto.remember('project', update.project);
      state.update(update.marks, update.project).forEach(refresh);
    }
  } catch {
    // The server is away, which Gradio reports; the next poll tries again.
  }
  clearTimeout(timer);
  timer = setTimeout(poll, document.hidden ? POLL_HIDDEN_MS : POLL_MS);
}

function pollSoon() {
  clearTimeout(timer);
  timer = setTimeout(poll, POLL_SOON_MS);
}

function connect() {
  // A tab comes into sight by a click or by the address of the page.
  new MutationObserver(flushShown).observe(document.documentElement, {
    subtree: true,
    attributeFilter: ['aria-selected'],
  });
  document.addEventListener('click', (event) => {
    const target = event.target.closest?.('button, [role=option], a');
    if (!target || /^(refresh|shown)-/.test(target.id)) return;
    if (target.matches('[role=tab]')) onShown(tabOf(target));
    pollSoon();
  });
  document.addEventListener('keyup', (event) => {
    if (event.target.matches?.('[role=tab]')) onShown(shownTab());
  });
  document.addEventListener('visibilitychange', pollSoon);
  document.addEventListener('change', pollSoon);
  poll();
}

if (globalThis.document) connect();
