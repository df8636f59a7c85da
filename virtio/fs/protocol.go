package fs

// FUSE's protocol 7, as far as requests are looked at here.
const (
	protocolMajor = 7
	// oldestMinor is the oldest that the library speaks. Linux has had virtiofs
	// since 31.
	oldestMinor = 12

	inHeaderSize  = 40
	outHeaderSize = 16

	rootNode = 1
	// libraryNode and libraryName are a file that the library makes up, for a
	// mount in its own process.
	libraryNode = ^uint64(0)
	libraryName = ".go-fuse-epoll-hack"
)

// Opcodes of requests that are treated in some way of their own.
const (
	opForget      = 2
	opReadlink    = 5
	opRead        = 15
	opWrite       = 16
	opSetXattr    = 21
	opGetXattr    = 22
	opListXattr   = 23
	opInit        = 26
	opReaddir     = 28
	opSetLk       = 32
	opSetLkw      = 33
	opInterrupt   = 36
	opDestroy     = 38
	opIoctl       = 39
	opNotifyReply = 41
	opBatchForget = 42
	opReaddirPlus = 44
	opSyncFS      = 50

	opcodes = 53
)

// Offsets in a request, from its first byte.
const (
	offLength      = 0
	offOpcode      = 4
	offUnique      = 8
	offNode        = 16
	offExtensions  = 36 // 2 bytes: the length of extensions behind the request
	offMajor       = inHeaderSize
	offMinor       = inHeaderSize + 4
	offSize        = inHeaderSize + 16 // of READ, WRITE, READDIR, READDIRPLUS
	offXattrSize   = inHeaderSize
	offIoctlOut    = inHeaderSize + 28
	offCount       = inHeaderSize       // of BATCH_FORGET
	offInitFlags   = outHeaderSize + 12 // of INIT's reply
	initSize       = inHeaderSize + 16  // of the oldest INIT
	longSetXattr   = inHeaderSize + 16  // the fixed part with SETXATTR_EXT
	batchEntrySize = 16
)

// Sizes that are bounded apart from the fixed parts, in bytes.
const (
	// maxPayload is the most behind the fixed part of a request other than WRITE:
	// the largest extended attribute and a name, or the target of a link and one.
	maxPayload = 64<<10 + 4<<10
	// maxReply is the most behind the fixed part of a reply other than READ's: the
	// largest extended attribute. A directory is read in pieces of at most that.
	maxReply = 64 << 10
	// maxLink is the longest target of a symbolic link.
	maxLink = 4 << 10
)

// kind is what is known of an opcode.
type kind struct {
	name string // "" if there is no such request
	// in is the size of a request's fixed part with its header, out that of a
	// reply's without: what is missing of either, the library reads or writes
	// elsewhere.
	in, out int
	names   bool // a name comes behind the fixed part
	silent  bool // there is no reply
}

var kinds = [opcodes]kind{
	1:             {name: "lookup", in: 40, out: 128, names: true},
	opForget:      {name: "forget", in: 48, silent: true},
	3:             {name: "getattr", in: 56, out: 104},
	4:             {name: "setattr", in: 128, out: 104},
	opReadlink:    {name: "readlink", in: 40},
	6:             {name: "symlink", in: 40, out: 128, names: true},
	8:             {name: "mknod", in: 56, out: 128, names: true},
	9:             {name: "mkdir", in: 48, out: 128, names: true},
	10:            {name: "unlink", in: 40, names: true},
	11:            {name: "rmdir", in: 40, names: true},
	12:            {name: "rename", in: 48, names: true},
	13:            {name: "link", in: 48, out: 128, names: true},
	14:            {name: "open", in: 48, out: 16},
	opRead:        {name: "read", in: 80},
	opWrite:       {name: "write", in: 80, out: 8},
	17:            {name: "statfs", in: 40, out: 80},
	18:            {name: "release", in: 64},
	20:            {name: "fsync", in: 56},
	opSetXattr:    {name: "setxattr", in: 48, names: true},
	opGetXattr:    {name: "getxattr", in: 48, out: 8, names: true},
	opListXattr:   {name: "listxattr", in: 48, out: 8},
	24:            {name: "removexattr", in: 40, names: true},
	25:            {name: "flush", in: 64},
	opInit:        {name: "init", in: initSize, out: 64},
	27:            {name: "opendir", in: 48, out: 16},
	opReaddir:     {name: "readdir", in: 80},
	29:            {name: "releasedir", in: 64},
	30:            {name: "fsyncdir", in: 56},
	31:            {name: "getlk", in: 88, out: 24},
	opSetLk:       {name: "setlk", in: 88},
	opSetLkw:      {name: "setlkw", in: 88},
	34:            {name: "access", in: 48},
	35:            {name: "create", in: 56, out: 144, names: true},
	opInterrupt:   {name: "interrupt", in: 48},
	opDestroy:     {name: "destroy", in: 40},
	opIoctl:       {name: "ioctl", in: 72, out: 16},
	opNotifyReply: {name: "notifyreply", in: 40, silent: true},
	opBatchForget: {name: "batchforget", in: 48, silent: true},
	43:            {name: "fallocate", in: 72},
	opReaddirPlus: {name: "readdirplus", in: 80},
	45:            {name: "rename2", in: 56, names: true},
	46:            {name: "lseek", in: 64, out: 8},
	47:            {name: "copyfilerange", in: 96, out: 8},
	opSyncFS:      {name: "syncfs", in: 48},
	51:            {name: "tmpfile", in: 56, out: 144, names: true},
	52:            {name: "statx", in: 64, out: 288},
}

// kindOf is the kind of an opcode: one without a name if it is not known.
func kindOf(opcode uint32) *kind {
	if opcode >= opcodes {
		return &kinds[0]
	}
	return &kinds[opcode]
}
