/* SPDX-License-Identifier: GPL-3.0-or-later */
/* Copyright: The msgd authors */
/*
 * tdb: how a plain message is appended to a record.  The twins are TdbBackend.send(), tdb's Outgoing.append() and
 * Destination, which say why each condition is there.
 *
 * It is plain while the destination is known to live, and its record PID/<pid> has room or the quota lasts.  The words
 * that the destination shares are mapped, and change at any time: each is read once, in one step.
 */
#define _GNU_SOURCE
#include "records.h"
#include "sending.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define RECORD_HEAD 24
#define IDS_SIZE 24
#define LONGEST 4096

enum { EPOCH, TAKING, FIRST_GRANT, AFTER_GRANTS = FIRST_GRANT + 6, WORDS_READ = AFTER_GRANTS };
#define AWAKE 0
#define CLOSED UINT64_MAX

#define TRUST_ALIVE 20e-6
#define LOOK_INTERVAL 0.25
#define MOVE (UINT64_C(1) << 40) /* epochs from here on belong to a process that has moved to another file */
#define SPINS 200

enum { O_DESTINATION, O_OPEN_KEY, O_QUOTA, O_UNCHECKED, O_UNCHECKED_BYTES, O_KEY, O_IN_RECORD, O_IN_RECORD_BYTES,
       O_RECORD_DEPTH, O_HAS_GRANT, O_BOUNDS, O_OWN_ID, O_SEGMENTS, S_CONTINUATION, D_UNIQUE_ID, D_WORDS, D_SIGNALLED, D_SEEN_ALIVE,
       D_LOCK_FD, D_PID, D_PIDFD, W_DEPTH };
enum { T_OUTGOING_CLASS, T_DESTINATION_CLASS, T_LIBRARY, T_WAKE_UPS, T_ADD, T_SEGMENTS_CLASS };
enum { B_RECORD_MESSAGES = 2, B_RECORD_BYTES, B_QUOTA, B_GRANTED_BYTES, BOUNDS };

static PyObject *decline(void)
{
	PyErr_Clear();
	return Py_NewRef(Py_None);
}

static int64_t slot_number(const Sender *self, PyObject *instance, int number)
{
	PyObject *object = value(self, instance, number);
	int64_t result = object && PyLong_Check(object) ? PyLong_AsLongLong(object) : -1;

	if (result == -1)
		PyErr_Clear();
	return result;
}

static int set_number(const Sender *self, PyObject *instance, int number, int64_t to)
{
	PyObject *object = PyLong_FromLongLong(to);

	if (!object)
		return -1;
	set_slot(instance, self->slots[number], object);
	return 0;
}

/* The message's records.  Native order is little-endian here. */
static PyObject *new_record(const struct outgoing *message)
{
	int32_t ids_head[4] = {2, 0, (int32_t)message->route.dst.pid, (int32_t)message->route.src.pid};
	int32_t head[4] = {1, (int32_t)message->type, ids_head[2], ids_head[3]};
	uint64_t ids_length = IDS_SIZE, length = (uint64_t)message->length;
	uint32_t tasks[2] = {message->route.dst.task_id, message->route.src.task_id};
	uint64_t unique_ids[2] = {message->route.dst.unique_id, message->route.src.unique_id};
	PyObject *record = PyBytes_FromStringAndSize(NULL, 2 * RECORD_HEAD + IDS_SIZE + message->length);
	char *place;

	if (!record)
		return NULL;
	place = PyBytes_AS_STRING(record);
	memcpy(place, ids_head, sizeof(ids_head));
	memcpy(place + 16, &ids_length, sizeof(ids_length));
	memcpy(place + 24, tasks, sizeof(tasks));
	memcpy(place + 32, unique_ids, sizeof(unique_ids));
	memcpy(place + 48, head, sizeof(head));
	memcpy(place + 64, &length, sizeof(length));
	memcpy(place + 72, message->data, (size_t)message->length);
	return record;
}

/* Whether the record is one with ids, and all fits its fields. */
static int is_plain(const struct outgoing *message)
{
	const struct address *dst = &message->route.dst, *src = &message->route.src;

	if (message->type > INT32_MAX || dst->pid > INT32_MAX || src->pid > INT32_MAX || !dst->pid || !src->pid)
		return 0;
	return dst->task_id || src->task_id ||
	       (dst->unique_id != UNIQUE_ID_UNKNOWN && dst->unique_id != UNIQUE_ID_NOT_TO_VERIFY);
}

/* Whether the destination's lock file is locked by it now; Destination.holds_lock(). */
static int holds_lock(Sender *self, PyObject *destination)
{
	int64_t fd = slot_number(self, destination, D_LOCK_FD), pid = slot_number(self, destination, D_PID);
	struct flock lock = {.l_type = F_RDLCK, .l_whence = SEEK_SET}; /* a write lock alone is in its way */

	return pid > 0 && (fd < 0 || (!fcntl((int)fd, F_GETLK, &lock) && lock.l_type != F_UNLCK && lock.l_pid == pid));
}

static double looked; /* when a send was last left to the twin, which looks whether the file is the same (moving.py) */

/* Whether the destination has been seen alive lately, or is now; Destination.is_alive(). */
static int is_alive(Sender *self, PyObject *destination)
{
	PyObject *seen = value(self, destination, D_SEEN_ALIVE), *object;
	struct timespec now;
	double seconds;

	if (!seen || !PyFloat_Check(seen))
		return 0;
	clock_gettime(CLOCK_MONOTONIC, &now);
	seconds = (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
	if (seconds - PyFloat_AS_DOUBLE(seen) <= TRUST_ALIVE)
		return 1;
	if (seconds - looked > LOOK_INTERVAL) {
		looked = seconds;
		return 0;
	}
	if (!holds_lock(self, destination))
		return 0;
	object = PyFloat_FromDouble(seconds);
	if (!object)
		return 0;
	set_slot(destination, self->slots[D_SEEN_ALIVE], object);
	return 1;
}

static uint64_t read_word(const Py_buffer *words, int number)
{
	return __atomic_load_n((const uint64_t *)words->buf + number, __ATOMIC_SEQ_CST);
}

static inline void relax(void)
{
#ifdef __x86_64__
	__builtin_ia32_pause();
#endif
}

/* Spin for a moment while the receiver empties the record: it says so. */
static void spin_while_taking(const Py_buffer *words)
{
	for (int i = 0; i < SPINS && read_word(words, TAKING); i++)
		relax();
}

/* Signal the destination, if nothing speaks against it; Destination.wake_up().  Returns whether that is done. */
static int signal_now(Sender *self, PyObject *destination, uint64_t epoch)
{
	int64_t pidfd = slot_number(self, destination, D_PIDFD);
	PyObject *signalled;

	if (pidfd < 0 || slot_number(self, self->objects[T_WAKE_UPS], W_DEPTH) || !holds_lock(self, destination))
		return 0;
	if (syscall(SYS_pidfd_send_signal, (int)pidfd, SIGUSR1, NULL, 0))
		return 0;
	signalled = PyLong_FromUnsignedLongLong(epoch);
	if (signalled)
		set_slot(destination, self->slots[D_SIGNALLED], signalled);
	else
		PyErr_Clear(); /* one more signal does no harm */
	return 1;
}

static int note_size(TDB_DATA key, TDB_DATA data, void *size)
{
	(void)key;
	*(size_t *)size = data.dsize;
	return 0;
}

/* What Outgoing knows of PID/<pid>, and what its bounds are. */
struct record_state {
	int64_t depth;
	int64_t messages;
	int64_t bytes;
	int64_t bounds[BOUNDS];
	int has_grant;
};

/* Whether this process has a grant of the destination: has_grant() in grants.py. */
static int find_grant(Sender *self, PyObject *outgoing, const Py_buffer *words)
{
	PyObject *object = value(self, outgoing, O_OWN_ID);
	uint64_t own = object && PyLong_Check(object) ? PyLong_AsUnsignedLongLong(object) : 0;

	if (PyErr_Occurred())
		PyErr_Clear();
	for (int i = FIRST_GRANT; own && i < AFTER_GRANTS; i++) {
		if (read_word(words, i) == own)
			return 1;
	}
	return 0;
}

/* Read the state; -1 if our messages go to segments, or if anything is not as it should be. */
static int read_state(Sender *self, PyObject *outgoing, struct record_state *state)
{
	PyObject *segments = value(self, outgoing, O_SEGMENTS), *bounds = value(self, outgoing, O_BOUNDS), *continuation;

	if (!segments || (PyObject *)Py_TYPE(segments) != self->objects[T_SEGMENTS_CLASS] || !bounds ||
	    !PyTuple_Check(bounds) || PyTuple_GET_SIZE(bounds) != BOUNDS ||
	    value(self, outgoing, O_OPEN_KEY) != value(self, outgoing, O_KEY))
		return -1;
	continuation = value(self, segments, S_CONTINUATION);
	if (!continuation || !PyBytes_Check(continuation) || PyBytes_GET_SIZE(continuation))
		return -1;
	for (int i = 0; i < BOUNDS; i++)
		state->bounds[i] = PyLong_AsLongLong(PyTuple_GET_ITEM(bounds, i));
	state->messages = slot_number(self, outgoing, O_IN_RECORD) + slot_number(self, outgoing, O_UNCHECKED);
	state->bytes = slot_number(self, outgoing, O_IN_RECORD_BYTES) + slot_number(self, outgoing, O_UNCHECKED_BYTES);
	state->has_grant = value(self, outgoing, O_HAS_GRANT) == Py_True;
	return PyErr_Occurred() || state->messages < 0 || state->bytes < 0 ? -1 : 0;
}

static int64_t least(int64_t one, int64_t other)
{
	return one < other ? one : other;
}

/* Check the depth and append, if there is room; Outgoing._has_record_room().  Returns whether it is done. */
static int append_if_room(const Library *library, PyObject *key, PyObject *record, struct record_state *state)
{
	int64_t most = state->bounds[state->has_grant ? B_GRANTED_BYTES : B_RECORD_BYTES];
	size_t depth = 0;

	if (library->parse_record(library->handle, datum(key), note_size, &depth))
		return 0;
	state->depth = (int64_t)depth;
	state->messages = least(state->messages, state->depth / RECORD_HEAD);
	state->bytes = least(state->bytes, state->depth);
	if (state->depth + PyBytes_GET_SIZE(record) > most || state->messages >= state->bounds[B_RECORD_MESSAGES])
		return 0;
	return !library->append(library->handle, datum(key), datum(record));
}

/*
 * Append to PID/<pid> after a check of its depth: with a grant without the lock, otherwise under the lock of the chain;
 * Outgoing._append_to_record().  Returns whether it is done.
 */
static int append_checked(Sender *self, PyObject *outgoing, const Py_buffer *words, PyObject *record)
{
	const Library *library = (Library *)self->objects[T_LIBRARY];
	PyObject *key = value(self, outgoing, O_KEY);
	struct record_state state;
	int done;

	if (read_state(self, outgoing, &state))
		return 0;
	if (state.has_grant && PyBytes_GET_SIZE(record) <= state.bounds[B_QUOTA]) {
		done = append_if_room(library, key, record, &state);
	} else {
		if (library->lock(library->handle, datum(key)))
			return 0;
		done = append_if_room(library, key, record, &state);
		library->unlock(library->handle, datum(key));
		state.has_grant = state.has_grant || find_grant(self, outgoing, words);
	}
	if (!done)
		return 0;
	set_slot(outgoing, self->slots[O_HAS_GRANT], Py_NewRef(state.has_grant ? Py_True : Py_False));
	if (set_number(self, outgoing, O_RECORD_DEPTH, state.depth) ||
	    set_number(self, outgoing, O_IN_RECORD, state.messages) ||
	    set_number(self, outgoing, O_IN_RECORD_BYTES, state.bytes) || set_number(self, outgoing, O_UNCHECKED, 1) ||
	    set_number(self, outgoing, O_UNCHECKED_BYTES, PyBytes_GET_SIZE(record)) ||
	    set_number(self, outgoing, O_QUOTA, state.has_grant ? state.bounds[B_QUOTA] : 0))
		PyErr_Clear(); /* memory is short: the next check of the depth puts the numbers right */
	return 1;
}

/* Append while the quota lasts; Outgoing.append().  Returns whether it is done. */
static int append_unchecked(Sender *self, PyObject *outgoing, PyObject *key, PyObject *record, int64_t unchecked,
			    int64_t bytes)
{
	const Library *library = (Library *)self->objects[T_LIBRARY];

	if (set_number(self, outgoing, O_UNCHECKED, unchecked + 1) || set_number(self, outgoing, O_UNCHECKED_BYTES, bytes))
		return 0;
	return !library->append(library->handle, datum(key), datum(record));
}

static PyObject *append(Sender *self, PyObject *outgoing, PyObject *destination, const Py_buffer *words,
			PyObject *record)
{
	const Library *library = (Library *)self->objects[T_LIBRARY];
	int64_t unchecked = slot_number(self, outgoing, O_UNCHECKED);
	int64_t bytes = slot_number(self, outgoing, O_UNCHECKED_BYTES) + PyBytes_GET_SIZE(record);
	PyObject *key = value(self, outgoing, O_OPEN_KEY), *done, *signalled;
	int is_appended;
	uint64_t epoch;

	if (!key || !PyBytes_Check(key) || !library->handle || unchecked < 0)
		return decline();
	spin_while_taking(words);
	if (bytes <= slot_number(self, outgoing, O_QUOTA))
		is_appended = append_unchecked(self, outgoing, key, record, unchecked, bytes);
	else
		is_appended = append_checked(self, outgoing, words, record);
	if (!is_appended)
		return decline(); /* the twin finds out why, and repairs; it may count the message twice, which does no harm */
	epoch = read_word(words, EPOCH);
	signalled = value(self, destination, D_SIGNALLED);
	if (epoch == AWAKE || epoch == CLOSED ||
	    (signalled && PyLong_Check(signalled) && PyLong_AsUnsignedLongLong(signalled) == epoch))
		return Py_NewRef(self->sent);
	if (epoch < MOVE && signal_now(self, destination, epoch))
		return Py_NewRef(self->sent);
	done = PyObject_CallMethodOneArg(self->objects[T_WAKE_UPS], self->objects[T_ADD], destination);
	Py_XDECREF(done);
	return done ? Py_NewRef(self->sent) : NULL;
}

static PyObject *transmit_record(Sender *self, const struct outgoing *message)
{
	PyObject *outgoing = PyDict_GetItemWithError(self->table, PyTuple_GET_ITEM(message->dst_object, 0));
	PyObject *destination, *words_object, *unique_id, *record, *status = NULL;
	Py_buffer words;

	if (!outgoing || (PyObject *)Py_TYPE(outgoing) != self->objects[T_OUTGOING_CLASS] || !is_plain(message))
		return decline();
	destination = value(self, outgoing, O_DESTINATION);
	if (!destination || (PyObject *)Py_TYPE(destination) != self->objects[T_DESTINATION_CLASS])
		return decline();
	unique_id = value(self, destination, D_UNIQUE_ID);
	if (message->route.dst.unique_id != UNIQUE_ID_UNKNOWN && message->route.dst.unique_id != UNIQUE_ID_NOT_TO_VERIFY &&
	    (!unique_id || !PyLong_Check(unique_id) || PyLong_AsUnsignedLongLong(unique_id) != message->route.dst.unique_id))
		return decline();
	words_object = value(self, destination, D_WORDS);
	if (!words_object || PyObject_GetBuffer(words_object, &words, PyBUF_SIMPLE))
		return decline();
	if (words.len >= (Py_ssize_t)(WORDS_READ * sizeof(uint64_t)) && (uintptr_t)words.buf % sizeof(uint64_t) == 0 &&
	    read_word(&words, EPOCH) != CLOSED && is_alive(self, destination)) {
		record = new_record(message);
		if (record)
			status = append(self, outgoing, destination, &words, record);
		Py_XDECREF(record);
	} else {
		status = decline();
	}
	PyBuffer_Release(&words);
	return status;
}

/* record_sender(lock, ServerID, table, SENT, Outgoing, Destination, Segments, Library, WakeUps, longest) */
PyObject *record_sender(PyObject *module, PyObject *args)
{
	static const char *const names[] = {"destination", "open_key", "quota", "unchecked", "unchecked_bytes", "key",
					   "_in_record", "_in_record_bytes", "_depth", "_has_grant", "_bounds",
					   "_unique_id", "segments", NULL};
	static const char *const segments_names[] = {"continuation", NULL};
	static const char *const destination_names[] = {"unique_id", "words", "signalled_epoch", "_seen_alive", "_lock_fd",
							"pid", "pidfd", NULL};
	static const char *const wake_ups_names[] = {"depth", NULL};
	PyObject *lock, *server_id, *table, *sent, *outgoing, *destination, *segments, *library, *wake_ups;
	Py_ssize_t longest;
	Sender *self;

	(void)module;
	if (!PyArg_ParseTuple(args, "OOOOOOOO!On", &lock, &server_id, &table, &sent, &outgoing, &destination, &segments,
			      &LibraryType, &library, &wake_ups, &longest))
		return NULL;
	self = new_sender(transmit_record, lock, server_id, table, sent, sent, LONGEST, longest);
	if (!self)
		return NULL;
	self->objects[T_OUTGOING_CLASS] = Py_NewRef(outgoing);
	self->objects[T_DESTINATION_CLASS] = Py_NewRef(destination);
	self->objects[T_LIBRARY] = Py_NewRef(library);
	self->objects[T_WAKE_UPS] = Py_NewRef(wake_ups);
	self->objects[T_SEGMENTS_CLASS] = Py_NewRef(segments);
	self->objects[T_ADD] = PyUnicode_InternFromString("add");
	if (!self->objects[T_ADD] || find_slots(self, O_DESTINATION, outgoing, names) ||
	    find_slots(self, D_UNIQUE_ID, destination, destination_names) ||
	    find_slots(self, S_CONTINUATION, segments, segments_names) ||
	    find_slots(self, W_DEPTH, (PyObject *)Py_TYPE(wake_ups), wake_ups_names))
		Py_CLEAR(self);
	return (PyObject *)self;
}
