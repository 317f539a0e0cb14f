// The published client in JavaScript: URL DIR [token].
import { Sandbox } from 'e2b'
import { execFileSync } from 'node:child_process'
import { dirname } from 'node:path'

const [url, directory, token] = process.argv.slice(2)
const here = process.env.CLIENTS ?? dirname(process.argv[1])
const tell = (what, value) => console.log(JSON.stringify([what, value]))
const sleep = (ms) => new Promise((done) => setTimeout(done, ms))
const failure = (call) => call.then(() => null, (error) => error.name)
const below = (entry) => entry.path.slice(directory.length)
const lines = (events) => [...new Set(events.map((event) => `${event.type} ${event.name}`))]

const sandbox = await (token ? Sandbox.connect('x') : Sandbox.connect('x', { debug: true, sandboxUrl: url }))
const files = sandbox.files
tell('running', await sandbox.isRunning())
tell('exists', await Promise.all(['', '/none', '/link'].map((name) => files.exists(directory + name))))
tell('list 2', (await files.list(directory, { depth: 2 })).map(below))
const ignored = () => {}
const failures = []
for (const call of [
  () => files.list(directory + '/none'),
  () => files.list(directory + '/file'),
  () => files.watchDir(directory + '/none', ignored),
  () => files.watchDir(directory + '/file', ignored),
  () => files.getInfo(directory + '/none'),
]) failures.push(await failure(call()))
tell('failures', failures)
const [seen, flat] = [[], []]
const whole = await files.watchDir(directory, (event) => seen.push(event), { recursive: true, includeEntry: true })
const one = await files.watchDir(directory, (event) => flat.push(event))
execFileSync('python3', ['-c', 'import sys; from common import change; change(sys.argv[1])', directory], { cwd: here })
await sleep(500)
tell('recursive', lines(seen))
tell('entry', [...new Set(seen.filter((event) => event.entry).map((event) => below(event.entry)))].sort())
tell('flat', lines(flat))
await whole.stop()
await one.stop()
const ended = new Promise((end) => files.watchDir(directory, ignored, { timeoutMs: 1000, onExit: end }))
tell('timeout', (await ended)?.name)
process.exit(0)
