// The page's words, in English and Chinese.

const ENGLISH = {
  videoPanel: "Video", chatPanel: "Conversation", conversation: "Conversation so far", question: "Question",
  docs: "Docs", exportMarkdown: "Save as Markdown", exportJson: "Save as JSON", clear: "Clear", cleared: "Conversation cleared.", undo: "Undo",
  drop: "Drop a video or a picture here, paste it, or click to choose one", dropHere: "Drop it anywhere", attach: "Add video",
  start: "From", end: "To", endHint: "end", frames: "Frames", framesHint: "default", strip: "Frames that the model sees",
  stripNote: "{count} frames, as the model sees them", stripWaiting: "Reading the video…", stripNone: "No preview of the frames: {reason}",
  settings: "Settings", maxTokens: "Longest answer, in tokens", maxTokensHint: "empty: no limit of its own",
  temperature: "Temperature", temperatureHint: "empty or 0: always the likeliest word", system: "System prompt", systemHint: "empty: the model's own",
  apiKey: "API key", apiKeyHint: "kept until this tab is closed", ask: "Ask about the video. Enter sends, Shift+Enter breaks the line",
  send: "Send", stop: "Stop", useUrl: "Use {url} as the video", remove: "Remove", describe: "Describe the video.",
  uploading: "Uploading", waiting: "Waiting for the server", decoding: "Reading the video", looking: "Looking at the video", thinking: "Thinking", answering: "Answering",
  stopped: "stopped", cut: "cut at the limit of tokens", broken: "The answer was cut off: the connection ended early.",
  unreachable: "The server cannot be reached.", again: "Ask again", gone: "The video {name} is not on the server any more: add it again.",
  empty: "The file is empty.", notMedia: "{name} is neither a video nor a picture.", firstToken: "first word after {seconds} s",
  cached: "{cached} of {frames} frames from the cache", timings: "Where the time went",
  queue_ms: "waiting for a decoder", fetch_ms: "fetching and hashing", decode_ms: "decoding and resizing", vision_queue_ms: "waiting for the vision tower",
  vision_ms: "vision tower", first_token_ms: "question to first word", seek: "Show {time} in the video", box: "Show the box on the frame",
  demo: "This is the small demo model: it understands videos of simple coloured shapes, and says so of others.",
  e401: "The API key is missing or wrong: enter it under Settings.", e429: "The server is busy. Try again in {after} s.",
  e503: "The server is not ready at the moment. Try again in {after} s.", e504: "The server took too long.", e413: "The file is too large for the server.",
};

const CHINESE = {
  videoPanel: "视频", chatPanel: "对话", conversation: "对话内容", question: "问题",
  docs: "文档", exportMarkdown: "存为 Markdown", exportJson: "存为 JSON", clear: "清空", cleared: "对话已清空。", undo: "撤销",
  drop: "把视频或图片拖到这里、粘贴，或点击选择", dropHere: "拖放到任意位置", attach: "添加视频",
  start: "从", end: "到", endHint: "结尾", frames: "帧数", framesHint: "默认", strip: "模型看到的帧",
  stripNote: "共 {count} 帧，即模型所见", stripWaiting: "正在读取视频…", stripNone: "无法预览帧：{reason}",
  settings: "设置", maxTokens: "回答的最大词元数", maxTokensHint: "留空：不另设上限",
  temperature: "温度", temperatureHint: "留空或 0：总是选最可能的词", system: "系统提示", systemHint: "留空：用模型自带的",
  apiKey: "API 密钥", apiKeyHint: "保留到关闭此标签页为止", ask: "就视频提问。回车发送，Shift+回车换行",
  send: "发送", stop: "停止", useUrl: "把 {url} 用作视频", remove: "移除", describe: "描述这个视频。",
  uploading: "正在上传", waiting: "等待服务器", decoding: "正在读取视频", looking: "正在观看视频", thinking: "正在思考", answering: "正在回答",
  stopped: "已停止", cut: "已达词元数上限，回答被截断", broken: "回答中断：连接提前结束。",
  unreachable: "无法连接服务器。", again: "重新提问", gone: "服务器上已没有视频 {name}，请重新添加。",
  empty: "文件是空的。", notMedia: "{name} 既不是视频也不是图片。", firstToken: "{seconds} 秒后出现第一个词",
  cached: "{frames} 帧中 {cached} 帧来自缓存", timings: "时间分布",
  queue_ms: "等待解码", fetch_ms: "获取并计算摘要", decode_ms: "解码与缩放", vision_queue_ms: "等待视觉模型",
  vision_ms: "视觉模型", first_token_ms: "从提问到第一个词", seek: "跳到视频的 {time}", box: "在画面上显示方框",
  demo: "这是小型演示模型：它能看懂由简单彩色图形组成的视频，遇到其他视频会如实说明。",
  e401: "API 密钥缺失或错误：请在“设置”中填写。", e429: "服务器繁忙，请在 {after} 秒后重试。",
  e503: "服务器暂时不可用，请在 {after} 秒后重试。", e504: "服务器处理超时。", e413: "文件超过服务器允许的大小。",
};

export const chinese = navigator.language.toLowerCase().startsWith("zh");
const WORDS = chinese ? CHINESE : ENGLISH;

/** A text of the page; `{name}` in it stands for a value. */
export function say(key, values = {}) {
  return WORDS[key].replace(/\{(\w+)\}/g, (_, name) => values[name]);
}

/** Fill the document's fixed texts. */
export function fillTexts() {
  document.documentElement.lang = chinese ? "zh" : "en";
  for (const element of document.querySelectorAll("[data-text]")) element.textContent = say(element.dataset.text);
  for (const element of document.querySelectorAll("[data-label]")) element.setAttribute("aria-label", say(element.dataset.label));
  for (const element of document.querySelectorAll("[data-placeholder]")) element.placeholder = say(element.dataset.placeholder);
}
