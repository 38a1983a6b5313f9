/* The page from top to bottom. */
if (data.diff) compared();
if (report) for (const part of [headline, findings, map, curves, memoryPicture, lanes, codes, inputsDiff, tensorTable, inputs, family, configuration]) part();
document.documentElement.dataset.ready = `${Math.round(performance.now())}`;
