// The Artwork tab: folders that are chosen or dropped keep their structure.
//
// Gradio sends the `name` of a File as its original name, and browsers put no folders into it. The studio needs
// them: pictures in two folders can have the same name, and `masks/` and `10_cats/` have a meaning. A property of
// the object hides that of its class, while the bytes are sent as before.

const nameFile = (file, path) => Object.defineProperty(file, 'name', { value: path, configurable: true });

// In the capture phase, so that the names are set before Gradio reads them.
document.addEventListener(
  'change',
  (event) => {
    if (!event.target.matches?.('input[type=file]')) return;
    for (const file of event.target.files) {
      if (file.webkitRelativePath) nameFile(file, file.webkitRelativePath);
    }
  },
  true,
);

const fileOf = (entry) => new Promise((resolve, reject) => entry.file(resolve, reject));
const someEntries = (reader) => new Promise((resolve, reject) => reader.readEntries(resolve, reject));

// Adds [path, File] of all files in a dropped file or folder. A file that can't be read is sent empty, so that
// the studio reports it.
async function collectFiles(entry, found) {
  if (entry.isFile) {
    const file = await fileOf(entry).catch(() => new File([], entry.name));
    found.push([entry.fullPath.replace(/^\//, ''), file]);
    return;
  }
  const reader = entry.createReader();
  // A browser returns at most a hundred entries at a time, and none at the end.
  for (let some = await someEntries(reader); some.length; some = await someEntries(reader)) {
    for (const inner of some) {
      if (!inner.name.startsWith('.')) await collectFiles(inner, found);
    }
  }
}

// Gradio takes a dropped folder for a file. Its files are handed to it as if they had been chosen.
document.addEventListener(
  'drop',
  async (event) => {
    const box = event.target.closest?.('#upload');
    if (!box || !event.dataTransfer) return;
    const entries = [...event.dataTransfer.items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
    if (!entries.some((entry) => entry.isDirectory)) return;
    event.preventDefault();
    event.stopImmediatePropagation();
    event.target.dispatchEvent(new DragEvent('drop', { bubbles: true })); // without files: ends Gradio's highlight
    const found = [];
    for (const entry of entries) await collectFiles(entry, found);
    const input = box.querySelector('input[type=file]');
    if (!input || !found.length) return;
    const transfer = new DataTransfer();
    for (const [, file] of found) transfer.items.add(file);
    input.files = transfer.files;
    found.forEach(([path], number) => nameFile(input.files[number], path));
    input.dispatchEvent(new Event('change', { bubbles: true }));
  },
  true,
);
