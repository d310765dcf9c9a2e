/* SPDX-License-Identifier: GPL-3.0-or-later */
/* Copyright: The msgd authors */
/*
 * stream: the plain frames of a chunk of bytes, many in one call.  The format is in msgd/wire/stream.py.
 *
 * A plain frame is whole, carries no descriptors, and its source is the process at the other end.  The first frame that
 * is anything else stops it: FrameReader takes that one.
 */
#include "native.h"

#include <errno.h>
#include <sys/socket.h>
#include <unistd.h>

#define FRAME_START 12
#define FRAME_SIZE (FRAME_START + HEADER_SIZE)
#define LONG 131072 /* msgd/wire/stream.py */
#define PARTIAL_MAX (LONG + FRAME_SIZE)
#define CHUNK 65536
#define MORE 196608 /* with a chunk, more than a socket's buffer holds by default */
#define RIGHTS_MAX 127

/* "msgd", version 1, kind 2 (a message), no descriptors. */
static const unsigned char PLAIN_START[8] = {'m', 's', 'g', 'd', 1, 2, 0, 0};

/* What the reader of one connection expects, and where its messages go. */
struct expected {
	Addresses *addresses;
	uint64_t pid;
	uint64_t max_length;
	PyObject *append; /* of the deque that takes the messages */
};

/* Append the messages of the plain frames.  Returns the bytes that they had; -1 with an exception. */
static Py_ssize_t split(const struct expected *expected, const char *data, Py_ssize_t size)
{
	Py_ssize_t position = 0;

	while (size - position >= FRAME_SIZE) {
		const char *frame = data + position;
		PyObject *message, *done;
		struct route route;
		uint32_t length, type;

		memcpy(&length, frame + sizeof(PLAIN_START), sizeof(length));
		if (memcmp(frame, PLAIN_START, sizeof(PLAIN_START)) || length < HEADER_SIZE || length > expected->max_length)
			break;
		if ((uint64_t)length > (uint64_t)(size - position - FRAME_START))
			break; /* not all of it is here */
		memcpy(&route, frame + FRAME_START, sizeof(route));
		memcpy(&type, frame + FRAME_START + sizeof(route), sizeof(type));
		if (route.src.pid != expected->pid)
			break;
		message = new_message(expected->addresses, &route, type, frame + FRAME_SIZE, (Py_ssize_t)length - HEADER_SIZE);
		done = message ? PyObject_CallOneArg(expected->append, message) : NULL;
		Py_XDECREF(message);
		if (!done)
			return -1;
		Py_DECREF(done);
		position += FRAME_START + (Py_ssize_t)length;
	}
	return position;
}

static int get_expected(struct expected *expected, PyObject *const *args)
{
	if (!Py_IS_TYPE(args[0], &AddressesType)) {
		PyErr_SetString(PyExc_TypeError, "the first argument must be Addresses");
		return -1;
	}
	expected->addresses = (Addresses *)args[0];
	expected->pid = PyLong_AsUnsignedLongLong(args[1]);
	expected->max_length = PyLong_AsUnsignedLongLong(args[2]);
	expected->append = args[3];
	return PyErr_Occurred() ? -1 : 0;
}

/* What receive_frames() returns: what FrameReader has to see to. */
enum care { NOTHING = 0, FRAMES = 1, DESCRIPTORS = 2, LOST_DESCRIPTORS = 3 };

/* Whether these bytes, at which split() has stopped, may be more than the beginning of a frame that is not long. */
static int needs_care(const struct expected *expected, const char *rest, Py_ssize_t size)
{
	uint32_t length;

	if (size < FRAME_START)
		return 0;
	memcpy(&length, rest + sizeof(PLAIN_START), sizeof(length));
	if (memcmp(rest, PLAIN_START, sizeof(PLAIN_START)) || length < HEADER_SIZE || length > expected->max_length)
		return 1;
	return length > LONG || (uint64_t)length <= (uint64_t)(size - FRAME_START);
}

/* Append the descriptors of a control message to a list, which owns them; -1 with an exception. */
static int keep_descriptors(const struct cmsghdr *control, PyObject *fds)
{
	size_t number = (control->cmsg_len - CMSG_LEN(0)) / sizeof(int);
	int failed = 0;

	for (size_t i = 0; i < number; i++) {
		PyObject *object = NULL;
		int fd;

		memcpy(&fd, CMSG_DATA(control) + i * sizeof(fd), sizeof(fd));
		if (!failed)
			object = PyLong_FromLong(fd);
		if (!object || PyList_Append(fds, object)) {
			failed = 1;
			close(fd);
		}
		Py_XDECREF(object);
	}
	return failed ? -1 : 0;
}

/* The descriptors that came with a chunk go to the reader.  Returns what to see to; -1 with an exception. */
static int take_descriptors(struct msghdr *header, PyObject *fds)
{
	int care = NOTHING, failed = 0;

	for (struct cmsghdr *one = CMSG_FIRSTHDR(header); one; one = CMSG_NXTHDR(header, one)) {
		if (one->cmsg_level == SOL_SOCKET && one->cmsg_type == SCM_RIGHTS && one->cmsg_len >= CMSG_LEN(0)) {
			care = DESCRIPTORS;
			failed |= keep_descriptors(one, fds);
		}
	}
	if (header->msg_flags & MSG_CTRUNC)
		care = LOST_DESCRIPTORS;
	return failed ? -1 : care;
}

static char chunk_buffer[PARTIAL_MAX + CHUNK + MORE]; /* the GIL is held as long as anything is in it */

/*
 * Receive at most `room` bytes behind the `before` bytes that are in the buffer.  Returns the bytes received; -1 with an
 * exception.
 */
static Py_ssize_t receive_chunk(int fd, Py_ssize_t before, size_t room, PyObject *fds, int *care)
{
	union {
		struct cmsghdr head;
		char room[CMSG_SPACE(RIGHTS_MAX * sizeof(int))];
	} control;
	struct iovec piece = {.iov_base = chunk_buffer + before, .iov_len = room};
	struct msghdr header = {
		.msg_iov = &piece, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof(control)
	};
	ssize_t received = recvmsg(fd, &header, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);

	if (received < 0) {
		PyErr_SetFromErrno(PyExc_OSError);
		return -1;
	}
	if (!received) {
		PyErr_SetNone(PyExc_EOFError);
		return -1;
	}
	*care = take_descriptors(&header, fds);
	return *care < 0 ? -1 : received;
}

/* Keep in the reader what was not taken of the `size` bytes in the buffer. */
static int keep_rest(PyObject *reader, Py_ssize_t taken, Py_ssize_t size)
{
	PyObject *rest = PyBytes_FromStringAndSize(chunk_buffer + taken, size - taken);
	int result = rest ? PyObject_SetAttrString(reader, "_partial", rest) : -1;

	Py_XDECREF(rest);
	return result;
}

/*
 * A chunk has ended in the middle of a frame that is not long: receive what is behind it, which is there already, mostly.
 * What keeps that from being received now shows in the next call.  Returns the bytes received; -1 with an exception.
 */
static Py_ssize_t receive_more(int fd, Py_ssize_t before, PyObject *fds, int *care)
{
	Py_ssize_t received = receive_chunk(fd, before, MORE, fds, care);

	if (received >= 0 || *care < 0)
		return received;
	PyErr_Clear();
	return 0;
}

/* Receive, split, and keep the rest.  Returns what the reader has to see to; -1 with an exception. */
static int receive_into_reader(struct expected *expected, int fd, PyObject *reader, PyObject *partial, PyObject *fds)
{
	Py_ssize_t before = PyBytes_GET_SIZE(partial), received, taken, size;
	int care;

	if (before > PARTIAL_MAX)
		return FRAMES; /* never so: the beginning of a long frame is not left in a partial one */
	memcpy(chunk_buffer, PyBytes_AS_STRING(partial), (size_t)before);
	received = receive_chunk(fd, before, CHUNK, fds, &care);
	if (received < 0)
		return -1;
	size = before + received;
	taken = care ? 0 : split(expected, chunk_buffer, size);
	if (!care && taken >= 0 && received == CHUNK && size - taken >= FRAME_START &&
	    !needs_care(expected, chunk_buffer + taken, size - taken)) {
		Py_ssize_t more = receive_more(fd, size, fds, &care), further;

		if (more < 0)
			return -1;
		size += more;
		further = care || !more ? 0 : split(expected, chunk_buffer + taken, size - taken);
		taken = further < 0 ? further : taken + further;
	}
	if (taken < 0) {
		keep_rest(reader, 0, 0); /* memory is short: the connection is of no use any more */
		return -1;
	}
	if ((taken < size || before) && keep_rest(reader, taken, size))
		return -1;
	if (care)
		return care;
	return PyList_GET_SIZE(fds) || needs_care(expected, chunk_buffer + taken, size - taken);
}

/*
 * receive_frames(addresses, pid, max_length, append, fd, reader) -> what the reader has to see to (enum care)
 *
 * Receives once.  Appends the messages of the plain frames; what comes behind them is left in reader._partial, and
 * descriptors in reader.fds.  Raises OSError, and EOFError at the end of the stream.
 */
PyObject *receive_frames(PyObject *module, PyObject *const *args, Py_ssize_t count)
{
	struct expected expected;
	PyObject *partial, *fds;
	int fd, care = -1;

	(void)module;
	if (count != 6) {
		PyErr_SetString(PyExc_TypeError, "receive_frames(addresses, pid, max_length, append, fd, reader)");
		return NULL;
	}
	fd = (int)PyLong_AsLong(args[4]);
	if (get_expected(&expected, args))
		return NULL;
	partial = PyObject_GetAttrString(args[5], "_partial");
	fds = partial ? PyObject_GetAttrString(args[5], "fds") : NULL;
	if (fds && (!PyBytes_Check(partial) || !PyList_Check(fds)))
		PyErr_SetString(PyExc_TypeError, "the reader's _partial must be bytes and its fds a list");
	else if (fds)
		care = receive_into_reader(&expected, fd, args[5], partial, fds);
	Py_XDECREF(partial);
	Py_XDECREF(fds);
	return care < 0 ? NULL : PyLong_FromLong(care);
}
