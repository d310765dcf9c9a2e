/* SPDX-License-Identifier: GPL-3.0-or-later */
/* Copyright: The msgd authors */
/*
 * Sender: what the plain sends of all transports have in common.
 *
 * sender(dst, src, type, data, known_tasks) does what Messaging.send() does, if the destination is known and has room, and returns a
 * SendStatus.  It returns None, and has done nothing, if anything is not plain.
 *
 * The endpoint's lock.  All of it happens with the GIL held, so it is one step to other threads; but one of them may be
 * in the middle of a step that it has begun under the lock.  So the lock is taken, unless there is no other thread.  If
 * another thread has it, the send is not plain: the twin waits for the lock.
 */
#include "sending.h"

static int is_only_thread(void)
{
	PyThreadState *first = PyInterpreterState_ThreadHead(PyInterpreterState_Get());

	return !PyThreadState_Next(first);
}

/* Pack both addresses, unless they are those of the last message; -1 if one does not fit. */
static int pack_route(Sender *self, PyObject *dst, PyObject *src)
{
	struct route route;

	if (dst == self->last_dst && src == self->last_src)
		return 0;
	if (read_address(self->server_id_class, dst, &route.dst) || read_address(self->server_id_class, src, &route.src))
		return -1;
	self->last = route;
	Py_XSETREF(self->last_dst, Py_NewRef(dst));
	Py_XSETREF(self->last_src, Py_NewRef(src));
	return 0;
}

/* Whether the destination's task needs no check: it has passed one, or is that of a request. */
static int is_known_task(const struct outgoing *message, PyObject *known_tasks)
{
	int found;

	if (message->route.dst.task_id >= FIRST_REQUEST_TASK)
		return 1;
	found = PyAnySet_Check(known_tasks) ? PySet_Contains(known_tasks, message->dst_object) : 0;
	if (found < 0)
		PyErr_Clear();
	return found > 0;
}

static PyObject *transmit_locked(Sender *self, const struct outgoing *message)
{
	PyObject *taken, *status, *released;

	if (is_only_thread())
		return self->transmit(self, message);
	taken = PyObject_CallOneArg(self->acquire, Py_False);
	if (taken != Py_True) {
		Py_XDECREF(taken);
		return taken ? Py_NewRef(Py_None) : NULL;
	}
	Py_DECREF(taken);
	status = self->transmit(self, message);
	released = PyObject_CallNoArgs(self->release);
	if (!released)
		Py_CLEAR(status);
	Py_XDECREF(released);
	return status;
}

static PyObject *sender_call(PyObject *callable, PyObject *const *args, size_t flags, PyObject *keywords)
{
	Sender *self = (Sender *)callable;
	struct outgoing message;
	PyObject *status;

	if (PyVectorcall_NARGS(flags) != 5 || keywords) {
		PyErr_SetString(PyExc_TypeError, "sender(dst, src, type, data, known_tasks)");
		return NULL;
	}
	message.dst_object = args[0];
	message.type_object = args[2];
	message.data_object = args[3];
	if (!PyBytes_CheckExact(args[3]) || PyBytes_GET_SIZE(args[3]) > self->longest || read_u32(args[2], &message.type) ||
	    pack_route(self, args[0], args[1]) ||
	    (self->last.dst.vnn != NONCLUSTER_VNN && self->last.dst.vnn != self->node))
		return Py_NewRef(Py_None);
	message.route = self->last;
	message.data = PyBytes_AS_STRING(args[3]);
	message.length = PyBytes_GET_SIZE(args[3]);
	if (!is_known_task(&message, args[4]))
		return Py_NewRef(Py_None);
	status = transmit_locked(self, &message);
	if (status && status != Py_None) {
		self->sent_messages++;
		self->sent_bytes += (unsigned long long)message.length;
	}
	return status;
}

PyObject *find_destination(Sender *self, const struct outgoing *message, PyObject *cls, int unique_id_slot)
{
	uint64_t wanted = message->route.dst.unique_id;
	PyObject *found = PyDict_GetItemWithError(self->table, PyTuple_GET_ITEM(message->dst_object, 0));
	PyObject *unique_id;

	if (!found || (PyObject *)Py_TYPE(found) != cls)
		return NULL;
	if (wanted == UNIQUE_ID_UNKNOWN || wanted == UNIQUE_ID_NOT_TO_VERIFY)
		return found;
	unique_id = value(self, found, unique_id_slot);
	if (!unique_id || !PyLong_Check(unique_id) || PyLong_AsUnsignedLongLong(unique_id) != wanted)
		return NULL;
	return found;
}

int find_slots(Sender *self, int first, PyObject *cls, const char *const *names)
{
	for (; *names; names++, first++) {
		if (first >= SENDER_SLOTS || (self->slots[first] = slot_offset(cls, *names)) < 0)
			return -1;
	}
	return 0;
}

Sender *new_sender(transmit_function *transmit, PyObject *lock, PyObject *server_id_class,
		   PyObject *table, PyObject *sent, PyObject *queued, Py_ssize_t longest, Py_ssize_t most)
{
	Sender *self;

	if (!PyType_Check(server_id_class) || !PyDict_Check(table)) {
		PyErr_SetString(PyExc_TypeError, "ServerID must be a class, the table a dict");
		return NULL;
	}
	self = PyObject_GC_New(Sender, &SenderType);
	if (!self)
		return NULL;
	memset((char *)self + sizeof(PyObject), 0, sizeof(*self) - sizeof(PyObject));
	self->vectorcall = sender_call;
	self->transmit = transmit;
	self->server_id_class = (PyTypeObject *)Py_NewRef(server_id_class);
	self->table = Py_NewRef(table);
	self->sent = Py_NewRef(sent);
	self->queued = Py_NewRef(queued);
	self->node = NONCLUSTER_VNN;
	self->longest = longest < most ? longest : most;
	PyObject_GC_Track(self);
	self->acquire = PyObject_GetAttrString(lock, "acquire");
	self->release = PyObject_GetAttrString(lock, "release");
	if (!self->acquire || !self->release)
		Py_CLEAR(self);
	return self;
}

static int sender_traverse(Sender *self, visitproc visit, void *arg)
{
	Py_VISIT(self->acquire);
	Py_VISIT(self->release);
	Py_VISIT(self->server_id_class);
	Py_VISIT(self->table);
	Py_VISIT(self->sent);
	Py_VISIT(self->queued);
	Py_VISIT(self->last_dst);
	Py_VISIT(self->last_src);
	for (int i = 0; i < SENDER_OBJECTS; i++)
		Py_VISIT(self->objects[i]);
	return 0;
}

/* Nobody who can call it is left, so that nothing reads what is cleared here. */
static int sender_clear(Sender *self)
{
	self->longest = -1; /* not plain: if it is called all the same, it declines */
	Py_CLEAR(self->acquire);
	Py_CLEAR(self->release);
	Py_CLEAR(self->server_id_class);
	Py_CLEAR(self->table);
	Py_CLEAR(self->sent);
	Py_CLEAR(self->queued);
	Py_CLEAR(self->last_dst);
	Py_CLEAR(self->last_src);
	for (int i = 0; i < SENDER_OBJECTS; i++)
		Py_CLEAR(self->objects[i]);
	return 0;
}

static void sender_dealloc(Sender *self)
{
	PyObject_GC_UnTrack(self);
	sender_clear(self);
	PyObject_GC_Del(self);
}

static PyMemberDef sender_members[] = {
	{"sent", T_ULONGLONG, offsetof(Sender, sent_messages), READONLY, "messages sent"},
	{"sent_bytes", T_ULONGLONG, offsetof(Sender, sent_bytes), READONLY, "their data, in bytes"},
	{"node", T_UINT, offsetof(Sender, node), 0, "this node's number: messages to it are plain"},
	{NULL, 0, 0, 0, NULL},
};

PyTypeObject SenderType = {
	PyVarObject_HEAD_INIT(NULL, 0)
	.tp_name = "msgd._native.Sender",
	.tp_doc = "sender(dst, src, type, data, known_tasks): the status of a plain send, or None.",
	.tp_basicsize = sizeof(Sender),
	.tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_HAVE_VECTORCALL | Py_TPFLAGS_DISALLOW_INSTANTIATION,
	.tp_vectorcall_offset = offsetof(Sender, vectorcall),
	.tp_call = PyVectorcall_Call,
	.tp_members = sender_members,
	.tp_traverse = (traverseproc)sender_traverse,
	.tp_clear = (inquiry)sender_clear,
	.tp_dealloc = (destructor)sender_dealloc,
};
