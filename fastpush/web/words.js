// Everything the page says, in English and in Chinese, and which of them it speaks now.

const WORDS = {
  en: {
    title: "Group chat",
    otherLanguage: "中文",
    switchLanguage: "切换到中文",
    menu: "Rooms and people",
    applications: "Applications",
    other: "Other path",
    chat: "Chat",
    push: "Push",
    echo: "Echo",
    hub: "Hub",
    broadcast: "Broadcast",
    aboutChat: "Rooms, private messages, and who is here.",
    aboutPush: "Receive what a back-end pushes to your user and event.",
    aboutEcho: "What you send comes back.",
    aboutHub: "What anybody sends reaches everybody.",
    aboutBroadcast: "What anybody sends reaches everybody, one connection for each key.",
    aboutOther: "Messages in and out, as they are.",
    name: "Name or token",
    anotherName: "Another name",
    token: "Token",
    tokenHint: "only where the server asks for one",
    event: "Event",
    key: "Key",
    gzip: "Receive gzip in binary messages",
    path: "Path",
    connect: "Connect",
    disconnect: "Disconnect",
    reconnectNow: "Connect now",
    again: "Connect again",
    change: "Change",
    stop: "Stop trying",
    idle: "Not connected",
    connecting: "Connecting…",
    open: "Connected",
    openReceiving: "Connected: receiving {events}",
    registering: "Connected, registering…",
    waiting: "Reconnecting in {seconds} s",
    closed: "Connection closed.",
    lineOpen: "Connected.",
    lineClosed: "Connection closed. {code}: {why} (readyState {readyState})",
    error: "WebSocket error!",
    banner: "{text}. {why}. {rest}",
    final: "It will not reconnect by itself.",
    noWebSocket: "This browser has no WebSocket, so there is nothing to connect with.",
    rooms: "Rooms",
    events: "Events",
    privateTalks: "Private",
    hall: "Hall",
    enterRoom: "Enter a room",
    registerEvent: "Register an event",
    enter: "Enter",
    register: "Register",
    leave: "Leave {name}",
    closeTalk: "Close",
    unread: "{count} unread",
    members: "Online",
    membersOf: "{count} online",
    writeTo: "Write to {name} privately",
    you: "you",
    own: "You",
    privateWith: "Private with {name}",
    messages: "Messages",
    empty: "Nothing here yet. Say something.",
    emptyPush: "Nothing yet. What is pushed to this event appears here.",
    newMessages: "{count} new ↓",
    message: "Message",
    placeholder: "Write a message",
    hint: "Enter sends, Shift+Enter starts a new line",
    send: "Send",
    attach: "Image or file",
    attachImage: "Image",
    attachFile: "File",
    attachUrl: "Web address",
    attachUrlHint: "https://…",
    attachCancel: "Without",
    notUrl: "Only addresses that begin with http:// or https://",
    showImage: "Show image",
    hostLearns: "{host} will learn your address",
    imageFailed: "The image cannot be loaded",
    image: "Image",
    file: "File",
    badUrl: "not a web address: {url}",
    notSent: "Not sent: there is no connection.",
    came: "{name} came in",
    left: "{name} left",
    bytes: "{count} bytes",
    pushTo: "Send a test push",
    user: "User",
    pushPath: "Push path",
    pushKey: "Push key",
    pushKeyHint: "only where [push] auth asks for one",
    more: "More",
    pushed: "Sent to {count} connections",
    pushedOne: "Sent to 1 connection",
    pushedNobody: "Sent to nobody: this user is not registered for this event",
    pushFailed: "Failed: {why}",
    timeout: "no answer within 15 s",
    code0: "no token could be had",
    code1000: "closed normally",
    code1001: "the other side went away",
    code1002: "protocol error",
    code1005: "closed without a code",
    code1006: "connection lost or refused",
    code1007: "a message was not what the server understands",
    code1008: "policy: not registered in time, a limit, or dropped by the back-end",
    code1009: "message too big",
    code1011: "a handler failed on the server",
    code1012: "the server restarts or stops",
    code1013: "overloaded, too slow, or authentication cannot be reached",
    code4500: "replaced by a newer connection",
    code4501: "token rejected",
    code4502: "token expired",
    codeOther: "closed by the application",
  },
  zh: {
    title: "群聊天室",
    otherLanguage: "English",
    switchLanguage: "Switch to English",
    menu: "房间与成员",
    applications: "应用",
    other: "其他路径",
    chat: "聊天",
    push: "推送",
    echo: "回声",
    hub: "集线",
    broadcast: "广播",
    aboutChat: "房间、私聊，以及谁在线。",
    aboutPush: "接收后端推送给您的用户和事件的消息。",
    aboutEcho: "您发送的内容会原样返回。",
    aboutHub: "任何人发送的内容都会到达所有人。",
    aboutBroadcast: "任何人发送的内容都会到达所有人，每个密钥一个连接。",
    aboutOther: "原样收发消息。",
    name: "昵称或令牌",
    anotherName: "换一个昵称",
    token: "令牌",
    tokenHint: "仅在服务器要求时填写",
    event: "事件",
    key: "密钥",
    gzip: "以二进制消息接收 gzip",
    path: "路径",
    connect: "连接",
    disconnect: "断开",
    reconnectNow: "立即连接",
    again: "重新连接",
    change: "更改",
    stop: "停止重试",
    idle: "未连接",
    connecting: "正在连接…",
    open: "连接了",
    openReceiving: "连接了：正在接收 {events}",
    registering: "连接了，正在注册…",
    waiting: "{seconds} 秒后重新连接",
    closed: "连接已关闭。",
    lineOpen: "连接了",
    lineClosed: "连接已关闭。{code}：{why}（readyState {readyState}）",
    error: "WebSocket异常!",
    banner: "{text}。{why}。{rest}",
    final: "不会自动重新连接。",
    noWebSocket: "此浏览器不支持 WebSocket，无法连接。",
    rooms: "房间",
    events: "事件",
    privateTalks: "私聊",
    hall: "大厅",
    enterRoom: "进入房间",
    registerEvent: "注册事件",
    enter: "进入",
    register: "注册",
    leave: "离开 {name}",
    closeTalk: "关闭",
    unread: "{count} 条未读",
    members: "在线",
    membersOf: "{count} 人在线",
    writeTo: "与 {name} 私聊",
    you: "您",
    own: "您",
    privateWith: "与 {name} 私聊",
    messages: "消息",
    empty: "还没有消息，说点什么吧。",
    emptyPush: "还没有消息。推送给此事件的内容会显示在这里。",
    newMessages: "{count} 条新消息 ↓",
    message: "消息内容",
    placeholder: "说点什么…",
    hint: "回车发送，Shift+回车换行",
    send: "发送",
    attach: "图片或文件",
    attachImage: "图片",
    attachFile: "文件",
    attachUrl: "网址",
    attachUrlHint: "https://…",
    attachCancel: "不附加",
    notUrl: "只能使用以 http:// 或 https:// 开头的网址",
    showImage: "显示图片",
    hostLearns: "{host} 将得知您的网络地址",
    imageFailed: "无法加载图片",
    image: "图片",
    file: "文件",
    badUrl: "不是网址：{url}",
    notSent: "未发送：没有连接。",
    came: "{name} 进来了",
    left: "{name} 离开了",
    bytes: "{count} 字节",
    pushTo: "发送测试推送",
    user: "用户",
    pushPath: "推送路径",
    pushKey: "推送密钥",
    pushKeyHint: "仅在 [push] auth 要求时填写",
    more: "更多",
    pushed: "已发送给 {count} 个连接",
    pushedOne: "已发送给 1 个连接",
    pushedNobody: "没有人收到：该用户没有注册此事件",
    pushFailed: "失败：{why}",
    timeout: "15 秒内没有应答",
    code0: "没有取得令牌",
    code1000: "正常关闭",
    code1001: "对方已离开",
    code1002: "协议错误",
    code1005: "关闭时没有给出代码",
    code1006: "连接中断或被拒绝",
    code1007: "服务器无法理解某条消息",
    code1008: "策略：未及时注册、超出限制或被后端断开",
    code1009: "消息太大",
    code1011: "服务器处理失败",
    code1012: "服务器正在重启或停止",
    code1013: "服务器过载、接收太慢，或无法访问认证服务",
    code4500: "被更新的连接取代",
    code4501: "令牌被拒绝",
    code4502: "令牌已过期",
    codeOther: "由应用关闭",
  },
};

const NAMES = {
  en: [
    ["Calm", "Bright", "Quick", "Gentle", "Merry", "Brave", "Quiet", "Sunny", "Clever", "Lucky"],
    ["Otter", "Heron", "Maple", "Comet", "Panda", "Robin", "Willow", "Fox", "Harbor", "Lark"],
    "",
  ],
  zh: [
    ["安静的", "明亮的", "爱笑的", "勇敢的", "温柔的", "机灵的", "快乐的", "幸运的", "悠闲的", "早起的"],
    ["海獭", "白鹭", "枫叶", "彗星", "熊猫", "知更鸟", "柳树", "狐狸", "海港", "云雀"],
    "",
  ],
};

const remembered = readLanguage();
let language = remembered ?? (navigator.languages?.[0] ?? navigator.language ?? "en").toLowerCase().slice(0, 2);
if (!(language in WORDS)) language = "en";

function readLanguage() {
  try {
    return localStorage.getItem("language");
  } catch {
    return null; // no storage for this page
  }
}

/** The words for `key` in the language of now, with {names} replaced. */
export function say(key, values = {}) {
  const text = WORDS[language][key] ?? key;
  return text.replace(/\{(\w+)\}/g, (_, name) => values[name] ?? "");
}

/** The meaning of a close code. */
export function meaning(code) {
  return say(`code${code}` in WORDS.en ? `code${code}` : "codeOther");
}

// Making a format takes longer than a message may.
const timeForm = { timeStyle: "medium", hourCycle: "h23" };
const times = formats(timeForm);
const moments = formats({ dateStyle: "medium", ...timeForm });

function formats(form) {
  return { en: new Intl.DateTimeFormat("en", form), zh: new Intl.DateTimeFormat("zh-CN", form) };
}

/** The time of day, as it is written here. */
export function timeOf(date) {
  return times[language].format(date);
}

/** Day and time, as they are written here. */
export function momentOf(date) {
  return moments[language].format(date);
}

/** A name for somebody who has none. */
export function randomName() {
  const pick = (list) => list[Math.floor(Math.random() * list.length)];
  const [first, second, between] = NAMES[language];
  return `${pick(first)}${between}${pick(second)}${10 + Math.floor(Math.random() * 90)}`;
}

/** Speak the other language from now on, and remember it. */
export function switchLanguage() {
  language = language === "en" ? "zh" : "en";
  try {
    localStorage.setItem("language", language);
  } catch {
    // It is not remembered then.
  }
}

/** Put the words of now into every element that has asked for some. */
export function translate(root = document) {
  document.documentElement.lang = locale();
  for (const element of root.querySelectorAll("[data-say]")) element.textContent = say(element.dataset.say);
  for (const element of root.querySelectorAll("[data-say-label]")) {
    element.setAttribute("aria-label", say(element.dataset.sayLabel));
  }
  for (const element of root.querySelectorAll("[data-say-placeholder]")) {
    element.placeholder = say(element.dataset.sayPlaceholder);
  }
}

function locale() {
  return language === "zh" ? "zh-CN" : "en";
}
